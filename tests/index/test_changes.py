from dataclasses import replace

import pytest

from modalloy.data.known_files import FileState
from modalloy.index.changes import Picture, compare


def picture(id, content="a", captions=(), modified_ns=1, **fields):
    return Picture(id, f"{id}.png", FileState(9, modified_ns, content * 64), "train", tuple(captions), **fields)


def held(*pictures):
    return {each.id: each for each in pictures}


def test_nothing_changes_what_is_the_same():
    cat = picture("cat", captions=["A cat."], metadata={"year": 2020.0})
    changes = compare(held(cat), [replace(cat)])
    assert changes.changed == () and changes.gone == () and changes.unchanged == 1


@pytest.mark.parametrize(
    ("now", "kind", "donor", "texts"),
    [
        (picture("dog", "b", ["A cat."]), "new", None, (None,)),
        (picture("cat", "b", ["A cat.", "x"]), "changed", None, ("cat#0", None)),
        (picture("pet", "a", ["A pet.", "A cat."]), "moved", "cat", ("cat#1", "cat#0")),
        (picture("cat", "a", ["A pet.", "new"]), "recaptioned", "cat", ("cat#1", None)),
        (picture("cat", "a", ["A cat.", "A pet."], modified_ns=2), "touched", "cat", ("cat#0", "cat#1")),
        (picture("cat", "a", ["A cat.", "A pet."], metadata={"year": 1.0}), "touched", "cat", ("cat#0", "cat#1")),
    ],
)
def test_each_kind_and_what_it_takes_over(now, kind, donor, texts):
    cat = picture("cat", captions=["A cat.", "A pet."])
    (change,) = compare(held(cat), [now]).changed
    assert (change.kind, change.donor, change.texts) == (kind, donor, texts)
    assert change.costs == (donor is None or None in texts)


def test_two_pictures_that_swap_their_contents_cost_nothing():
    changes = compare(held(picture("a", "1"), picture("b", "2")), [picture("a", "2"), picture("b", "1")])
    assert [(each.picture.id, each.donor, each.costs) for each in changes.changed] == [
        ("a", "b", False),
        ("b", "a", False),
    ]
    assert changes.gone == ()


def test_what_is_gone_is_lost_unless_its_content_is_elsewhere():
    changes = compare(held(picture("a", "1"), picture("b", "2"), picture("c", "3")), [picture("d", "2")])
    assert changes.gone == ("a", "b", "c") and changes.lost == 2
