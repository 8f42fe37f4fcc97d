"""Tokens from stores against each item's read and mapped on its own."""

import pytest
import torch
from search.local_toys import WIDTHS, branch, stored

from modalloy.align import Tokens
from modalloy.errors import ConfigError, DataError
from modalloy.search.token_source import HeldTokens, StoredTokens


@pytest.mark.parametrize("modality", ["image", "text"])
def test_each_item_is_read_from_its_row(tmp_path, modality):
    which = [8, 1, 5, 2]
    source, stores = stored(tmp_path, modality, 9, which)
    assert len(source) == 4 and source.levels == {"high", "mid"}
    items = torch.tensor([3, 0, 3])
    found = source.read(items, ["mid", "high"])
    for level in ("high", "mid"):
        linear = branch().get_submodule(f"{modality}_{level}")
        for place, item in enumerate(items.tolist()):
            packed, _ = stores[level].tokens(torch.tensor([which[item]]))
            tokens = found[level]
            # Regions are compared without the picture's summary.
            compared = packed[1:] if modality == "image" else packed
            torch.testing.assert_close(tokens.values[place][tokens.mask[place]], linear(compared.float()).detach())
            assert packed.shape[1] == WIDTHS[modality][level]


def test_only_the_wanted_level_is_read():
    def refuse(rows):
        raise AssertionError("read without need")

    read = {"high": lambda rows: (torch.ones(len(rows), 5).half(), torch.ones(len(rows)).long()), "mid": refuse}
    source = StoredTokens("text", read, torch.arange(2))
    assert set(source.read(torch.tensor([1]), ["high"])) == {"high"}


@pytest.mark.parametrize("stored_as", [torch.float16, torch.float64])
def test_tokens_score_in_float32_at_least(stored_as):
    values = torch.arange(12.0).view(2, 3, 2).to(stored_as)
    packed = values.flatten(0, 1), torch.tensor([3, 3])
    sources = [
        HeldTokens({"high": Tokens(values, torch.ones(2, 3, dtype=torch.bool))}),
        StoredTokens("text", {"high": lambda rows: packed}, torch.arange(2)),
    ]
    for source in sources:
        found = source.read(torch.arange(2), ["high"])["high"].values
        assert found.dtype == max(stored_as, torch.float32, key=lambda each: each.itemsize)
        assert torch.equal(found, values.to(found.dtype))


def test_a_level_that_is_not_there_is_named(tmp_path):
    source, _ = stored(tmp_path, "image", 5, levels=("high",))
    for each in (source, HeldTokens(source.read(torch.arange(5), ["high"]))):
        with pytest.raises(DataError, match=r"no tokens of the level 'mid', only of \['high'\]"):
            each.read(torch.tensor([0]), ["mid"])


def test_sources_without_levels_or_of_unequal_items_are_refused():
    def tokens(items: int) -> Tokens:
        return Tokens(torch.ones(items, 1, 2), torch.ones(items, 1, dtype=torch.bool))

    with pytest.raises(ConfigError, match="at least one level"):
        StoredTokens("text", {}, torch.arange(2))
    with pytest.raises(ConfigError, match="at least one level"):
        HeldTokens({})
    with pytest.raises(DataError, match="'high': 2, 'mid': 3"):
        HeldTokens({"high": tokens(2), "mid": tokens(3)})
