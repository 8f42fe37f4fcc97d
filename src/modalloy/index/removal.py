"""Takes pictures out of an index, with their captions."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from modalloy.errors import DataError
from modalloy.index.base import Index
from modalloy.index.condition import Condition

_SHOWN = 3


def remove_pictures(index: Index, ids: Sequence[str]) -> int:
    """Removes pictures by their ids, all or none of them; gives how many.

    Raises:
        DataError: the index has no such picture.
    """
    rows = index.snapshot().rows(list(dict.fromkeys(ids)), ["id", "modality", "captions"]).to_pylist()
    pictures = [row for row in rows if row["modality"] == "image"]
    unknown = sorted(set(ids) - {row["id"] for row in pictures})
    if unknown:
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        raise DataError(
            f"{index.location} has no picture {', '.join(map(repr, unknown[:_SHOWN]))}{more}, so nothing was removed; "
            "`modalloy index list` shows the ids."
        )
    return _remove(index, pictures)


def remove_where(index: Index, where: Sequence[Condition]) -> int:
    """Removes all pictures that satisfy some conditions, at least one; gives how many.

    Raises:
        ConfigError: the index has no such field.
        DataError: there is no condition.
    """
    if not where:
        raise DataError("without a condition all pictures would be removed; name one.")
    images = [*where, Condition("modality", "=", "image")]
    batches = index.snapshot().scan(["id", "captions"], images)
    return _remove(index, [row for batch in batches for row in batch.to_pylist()])


def remove_source(index: Index, name: str) -> int:
    """Removes a source with all of its pictures; gives how many.

    Raises:
        DataError: the index has no such source.
    """
    head = index.head
    left = tuple(source for source in head.sources if source.name != name)
    if len(left) == len(head.sources):
        known = ", ".join(repr(source.name) for source in head.sources) or "none"
        raise DataError(f"{index.location} has no source {name!r}; its sources: {known}.")
    removed = remove_where(index, [Condition("source", "=", name)])
    # Last, so that there are never rows whose source isn't known.
    index.commit(head=replace(head, sources=left))
    return removed


def _remove(index: Index, pictures: Iterable[dict[str, Any]]) -> int:
    pictures = list(pictures)
    # Known by number, as a caption that the encoder refused has no row, which is no harm.
    captions = [f"{row['id']}#{number}" for row in pictures for number in range(len(row["captions"] or ()))]
    if pictures:
        index.commit(removed=[*(row["id"] for row in pictures), *captions])
    return len(pictures)
