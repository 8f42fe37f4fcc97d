"""Items' tokens in the space of a local branch, read from stored features when they are needed."""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from modalloy.align.cross_layer import Levels, compared_packed
from modalloy.align.local_similarity import Tokens
from modalloy.encoders import Level, Modality
from modalloy.errors import ConfigError, DataError

ReadTokens = Callable[[Int[Tensor, "batch"]], tuple[Float[Tensor, "packed width"], Int[Tensor, "batch"]]]
"""Packed tokens of some rows, and how many each has: `FeatureStore.tokens`."""

_CPU = torch.device("cpu")


@runtime_checkable
class TokenSource(Protocol):
    """Tokens of some images or captions in the space of a local branch."""

    @property
    def levels(self) -> frozenset[Level]:
        """What levels there are."""

    def __len__(self) -> int:
        """How many items there are."""

    def read(self, items: Int[Tensor, "some"], levels: Iterable[Level]) -> Levels:
        """The tokens of some items by their places, at least in float32.

        Raises:
            DataError: there are no tokens of a level.
        """


class StoredTokens:
    """Tokens that a local branch has mapped, read from stores when they are needed, so that few are in memory.

    Stores begin with each item's summary token, which an image's regions are compared without (`compared_levels`).

    Args:
        modality: whether they are of images or captions.
        readers: what reads the tokens of each level, as `{"high": store.tokens}` of a store of `LocalLevel`'s features.
        rows: which row of the stores each item is.
        device: where the tokens come to.

    Raises:
        ConfigError: there is no level.

    >>> read = lambda rows: (torch.ones(2 * len(rows), 4, dtype=torch.float16), torch.full((len(rows),), 2))
    >>> stored = StoredTokens("image", {"high": read}, torch.arange(3))
    >>> stored.read(torch.tensor([2, 0]), ["high"])["high"].values.shape
    torch.Size([2, 1, 4])
    """

    def __init__(
        self,
        modality: Modality,
        readers: Mapping[Level, ReadTokens],
        rows: Int[Tensor, "items"],
        device: torch.device = _CPU,
    ) -> None:
        if not readers:
            raise ConfigError(f"stored tokens of {modality}s need a reader of at least one level, got none.")
        self._modality, self._readers, self._rows, self._device = modality, dict(readers), rows, device

    @property
    def levels(self) -> frozenset[Level]:
        """What levels are stored."""
        return frozenset(self._readers)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, items: Int[Tensor, "some"], levels: Iterable[Level]) -> Levels:
        """The tokens of some items.

        Raises:
            DataError: there are no tokens of a level.
            FeatureError: a shard is damaged, or has no such row.
        """
        rows, packed = self._rows[items], {}
        for level in levels:
            _require_level(level, self._readers)
            tokens, lengths = self._readers[level](rows)
            packed[level] = tokens.to(self._device), lengths
        return {level: _wide(compared) for level, compared in compared_packed(self._modality, packed).items()}


class HeldTokens:
    """Tokens that lie in memory, already mapped, such as those of new queries.

    Args:
        levels: padded tokens of each level, as `LocalBranch.project` gives them.

    Raises:
        ConfigError: there is no level.
        DataError: the levels are of unequally many items.

    >>> held = HeldTokens({"high": Tokens(torch.eye(3)[:, None].half(), torch.ones(3, 1, dtype=torch.bool))})
    >>> held.read(torch.tensor([1]), ["high"])["high"].values
    tensor([[[0., 1., 0.]]])
    """

    def __init__(self, levels: Levels) -> None:
        if not levels:
            raise ConfigError("held tokens need at least one level, got none.")
        sizes = {level: len(tokens) for level, tokens in levels.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"all levels must be of the same items, got numbers of items {sizes}.")
        self._levels = dict(levels)

    @property
    def levels(self) -> frozenset[Level]:
        """What levels are held."""
        return frozenset(self._levels)

    def __len__(self) -> int:
        return len(next(iter(self._levels.values())))

    def read(self, items: Int[Tensor, "some"], levels: Iterable[Level]) -> Levels:
        """The tokens of some items.

        Raises:
            DataError: there are no tokens of a level.
        """
        found = dict[Level, Tokens]()
        for level in levels:
            _require_level(level, self._levels)
            found[level] = _wide(self._levels[level][items.to(self._levels[level].mask.device)])
        return found


def _wide(tokens: Tokens) -> Tokens:
    return Tokens(tokens.values.to(torch.promote_types(tokens.values.dtype, torch.float32)), tokens.mask)


def _require_level(level: Level, levels: Mapping[Level, object]) -> None:
    if level not in levels:
        raise DataError(f"there are no tokens of the level {level!r}, only of {sorted(levels)}")
