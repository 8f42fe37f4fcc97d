"""Small stores of ragged random tokens, and local scores of theirs by loops over pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from align.loops import loop_score
from torch import Tensor
from torch.nn.functional import normalize

from modalloy.align import LocalBranch, LocalConfig, Tokens
from modalloy.align.cross_layer import Levels, Term
from modalloy.encoders import Fingerprint, Level, Modality
from modalloy.features import FeatureStore
from modalloy.features.shard import Shard
from modalloy.features.store_manifest import Description
from modalloy.features.writer import StoreWriter, shard_ranges
from modalloy.search.member import Member, Side
from modalloy.search.token_source import ReadTokens, StoredTokens

WIDTHS: dict[Modality, dict[Level, int]] = {"image": {"high": 4, "mid": 3}, "text": {"high": 5, "mid": 6}}


def branch() -> LocalBranch:
    torch.manual_seed(7)
    return LocalBranch(LocalConfig(4, 3, 5, 6, dim=8))


def store(folder: Path, modality: Modality, level: Level, rows: int, longest: int = 5) -> FeatureStore:
    """Items of two compared tokens to `longest`, behind an image's summary token, which isn't compared.

    With one word all weights of a sign would tie but for rounding.
    """
    width, dim = WIDTHS[modality][level], 6
    description = Description(
        folder.name, modality, Fingerprint(folder.name, "1", "a" * 64, "b" * 64), dim, width, collection="c" * 64
    )
    ranges = shard_ranges(rows, 4)
    writer = StoreWriter(folder, description, [f"{modality}-{row}" for row in range(rows)], 4, ["d" * 64] * len(ranges))
    for index, part in enumerate(ranges):
        lengths = torch.randint(2, longest + 1, (len(part),)) + (modality == "image")
        embedding = normalize(torch.randn(len(part), dim), dim=-1)
        packed = torch.randn(int(lengths.sum()), width).half()
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
        writer.write(index, Shard(embedding, torch.ones(len(part), dtype=torch.bool), packed, offsets), [])
    return writer.finish()


def stored(
    folder: Path,
    modality: Modality,
    rows: int,
    which: Sequence[int] | None = None,
    levels: tuple[Level, ...] = ("high", "mid"),
) -> tuple[StoredTokens, dict[Level, FeatureStore]]:
    """Tokens of `which` of `rows` items (by default all), and their stores."""
    torch.manual_seed(len(modality))
    stores = {level: store(folder / f"{modality}-{level}", modality, level, rows) for level in levels}
    rows_of = torch.tensor(range(rows) if which is None else which)
    return StoredTokens(modality, readers(modality, stores), rows_of), stores


def readers(modality: Modality, stores: Mapping[Level, FeatureStore]) -> dict[Level, ReadTokens]:
    """What reads mapped tokens where there are no stores of them."""

    def reader(level: Level, store: FeatureStore) -> ReadTokens:
        def read(rows: Tensor) -> tuple[Tensor, Tensor]:
            packed, lengths = store.tokens(rows)
            return branch().map_of(modality, level)(packed.float()).detach(), lengths

        return read

    return {level: reader(level, store) for level, store in stores.items()}


def side(folder: Path, modality: Modality, rows: int, levels: tuple[Level, ...] = ("high", "mid")) -> Side:
    tokens, stores = stored(folder, modality, rows, levels=levels)
    return Side(stores["high"].embeddings(), tokens)


def member(folder: Path, images: int, captions: int) -> Member:
    return Member(side(folder, "image", images), side(folder, "text", captions), branch().config)


def all_levels(tokens: StoredTokens) -> Levels:
    return tokens.read(torch.arange(len(tokens)), ("high", "mid"))


def loop_terms(images: Levels, captions: Levels, terms: Sequence[Term]) -> Tensor:
    """Images x captions."""
    attention = branch().config.attention

    def real(tokens: Tokens) -> list[Tensor]:
        return [values[mask].double() for values, mask in zip(tokens.values, tokens.mask, strict=True)]

    total = torch.zeros(len(images["high"]), len(captions["high"]))
    for term in terms:
        how = attention if term.focal else replace(attention, focal=None)
        for i, image in enumerate(real(images[term.image])):
            for j, caption in enumerate(real(captions[term.text])):
                total[i, j] += loop_score(image, caption, how)
    return total
