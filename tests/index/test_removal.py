import pytest
from index.memory_index import MemoryIndex
from index.picture_rows import head, picture_rows, table_of

from modalloy.errors import ConfigError, DataError
from modalloy.index import Condition
from modalloy.index.removal import remove_pictures, remove_source, remove_where


@pytest.fixture
def index(tmp_path):
    index = MemoryIndex(head(tmp_path))
    index.commit(table_of(picture_rows(tmp_path, 4)))
    return index


def ids(index):
    return {id for batch in index.snapshot().scan(["id"]) for id in batch["id"].to_pylist()}


def test_pictures_go_with_their_captions(index):
    before = ids(index)
    assert remove_pictures(index, ["sub:1.png", "sub:3.png", "sub:1.png"]) == 2
    assert ids(index) == {id for id in before if id[4] in "02"}


@pytest.mark.parametrize("unknown", ["sub:9.png", "sub:1.png#0", "", "../sub:1.png"])
def test_if_one_is_not_there_nothing_is_removed(index, unknown):
    before = ids(index)
    with pytest.raises(DataError, match=r"has no picture .*, so nothing was removed"):
        remove_pictures(index, ["sub:1.png", unknown])
    assert ids(index) == before


def test_many_unknown_ids_are_counted(index):
    with pytest.raises(DataError, match="has no picture 'a', 'b', 'c' and 2 more"):
        remove_pictures(index, list("abcde"))


def test_conditions_choose_pictures(index):
    assert remove_where(index, [Condition("year", ">=", 2001.0), Condition("camera", "=", "X100")]) == 2
    assert {id[4] for id in ids(index)} == {"0", "2"} and len(ids(index)) == 6
    assert remove_where(index, [Condition("year", "<", 0.0)]) == 0
    # Captions aren't removed by themselves.
    assert remove_where(index, [Condition("modality", "=", "text")]) == 0 and len(ids(index)) == 6
    with pytest.raises(ConfigError, match="no field 'color'"):
        remove_where(index, [Condition("color", "=", "red")])
    with pytest.raises(DataError, match="without a condition"):
        remove_where(index, [])


def test_a_source_goes_with_all_it_gave(index):
    with pytest.raises(DataError, match="has no source 'more'; its sources: ''"):
        remove_source(index, "more")
    assert remove_source(index, "") == 4
    assert ids(index) == set() and index.snapshot().head.sources == ()
