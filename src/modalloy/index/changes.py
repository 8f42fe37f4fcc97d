"""What has to be done so that an index holds a collection as it is now: the less is embedded, the better.

A picture's vector depends on its content alone, and a caption's on its text. So both are taken over from wherever the
index has them: a renamed file costs nothing, and a new caption is embedded by itself.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from modalloy.data.known_files import FileState
from modalloy.data.metadata import MetaValue

Kind = Literal["new", "changed", "moved", "recaptioned", "touched"]
"""touched: only what is known of the picture, such as its split or the time of its file, is another."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with its captions, as an index holds it or shall hold it, without vectors."""

    id: str
    """In the index."""
    path: str
    """Its file, relative to its source's root, with "/"."""
    file: FileState
    """Of that file."""
    split: str
    """One of `SPLITS`."""
    captions: tuple[str, ...]
    """Any number of them."""
    metadata: Mapping[str, MetaValue] = field(default_factory=dict)
    """What users know of it besides."""

    @property
    def caption_ids(self) -> list[str]:
        """The captions' ids."""
        return [f"{self.id}#{number}" for number in range(len(self.captions))]

    @property
    def row_ids(self) -> list[str]:
        """The ids of all its rows: its own and its captions'."""
        return [self.id, *self.caption_ids]


@dataclass(frozen=True, slots=True)
class Change:
    """A picture that the index doesn't hold, or not so."""

    picture: Picture
    """As it shall be."""
    kind: Kind
    """What happened to it."""
    donor: str | None
    """The picture in the index that has the same content; None where it is to be embedded."""
    texts: tuple[str | None, ...]
    """For each caption the one in the index that has the same text; None where it is to be embedded."""

    @property
    def costs(self) -> bool:
        """Whether there is anything to embed."""
        return self.donor is None or None in self.texts


@dataclass(frozen=True, slots=True)
class Changes:
    """All that is to be done."""

    changed: tuple[Change, ...]
    """In the collection's order."""
    gone: tuple[str, ...]
    """Pictures in the index that are in the collection no more, by their ids; moved ones too."""
    lost: int
    """How many of these are nowhere in the collection, by content."""
    unchanged: int
    """How many pictures are as they were."""


def compare(held: Mapping[str, Picture], wanted: Iterable[Picture], lost_captions: Container[str] = ()) -> Changes:
    """What changes `held` to `wanted`.

    >>> cat = Picture("cat.png", "cat.png", FileState(9, 1, "0" * 64), "train", ("A cat.",))
    >>> pet = Picture("pet.png", "pet.png", FileState(9, 1, "0" * 64), "train", ("A cat.", "A pet."))
    >>> changes = compare({"cat.png": cat}, [pet])
    >>> change, = changes.changed
    >>> change.kind, change.donor, change.texts, changes.gone, changes.lost
    ('moved', 'cat.png', ('cat.png#0', None), ('cat.png',), 0)

    Args:
        held: what the index holds of one source, by id.
        wanted: the source as it is now.
        lost_captions: captions of `held` that have no row, by their ids, and are to be embedded.
    """
    by_content = {picture.file.sha256: picture.id for picture in held.values()}
    changed, ids, contents = [], set[str](), set[str]()
    for picture in wanted:
        ids.add(picture.id)
        contents.add(picture.file.sha256)
        own = held.get(picture.id)
        if own != picture or any(id in lost_captions for id in picture.caption_ids):
            changed.append(_change(picture, own, held, by_content, lost_captions))
    gone = tuple(id for id in held if id not in ids)
    lost = sum(held[id].file.sha256 not in contents for id in gone)
    return Changes(tuple(changed), gone, lost, len(ids) - len(changed))


def _change(
    picture: Picture,
    own: Picture | None,
    held: Mapping[str, Picture],
    by_content: Mapping[str, str],
    lost_captions: Container[str],
) -> Change:
    same = own is not None and own.file.sha256 == picture.file.sha256
    donor = picture.id if same else by_content.get(picture.file.sha256)
    known: dict[str, str] = {}
    for source in (own, held.get(donor or "")):
        if source is not None:
            captions = zip(source.captions, source.caption_ids, strict=True)
            known |= {caption: id for caption, id in captions if id not in lost_captions}
    texts = tuple(known.get(caption) for caption in picture.captions)
    return Change(picture, _kind(picture, own, donor, texts), donor, texts)


def _kind(picture: Picture, own: Picture | None, donor: str | None, texts: tuple[str | None, ...]) -> Kind:
    if donor is None:
        return "new" if own is None else "changed"
    if own is None or donor != own.id:
        return "moved"
    return "touched" if own.captions == picture.captions and None not in texts else "recaptioned"
