"""Tokens from stores against each item's read and mapped on its own."""

import pytest
import torch
from search.local_toys import WIDTHS, branch, stored

from modalloy.align import Tokens
from modalloy.errors import ConfigError, DataError
from modalloy.search.token_source import HeldTokens, StoredTokens


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("modality", ["image", "text"])
def test_each_item_is_read_from_its_row_and_mapped(tmp_path, modality, held):
    which = [8, 1, 5, 2]
    source, stores = stored(tmp_path, modality, 9, which)
    assert len(source) == 4 and source.levels == {"high", "mid"}
    read = source.held(torch.float32) if held else source
    items = torch.tensor([3, 0, 3])
    found = read.read(items, ["mid", "high"])
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


def test_held_tokens_take_half_the_memory_and_score_in_float32(tmp_path):
    source, _ = stored(tmp_path, "image", 5)
    held = source.held()
    found, exact = (each.read(torch.arange(5), ["high"])["high"] for each in (held, source))
    assert held.read(torch.arange(1), ["high"])["high"].values.dtype == torch.float32
    assert held._levels["high"].values.dtype == torch.float16
    torch.testing.assert_close(found.values[found.mask], exact.values[exact.mask], rtol=1e-3, atol=1e-3)


def test_a_level_that_is_not_there_is_named(tmp_path):
    source, _ = stored(tmp_path, "image", 5, levels=("high",))
    for each in (source, source.held()):
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
