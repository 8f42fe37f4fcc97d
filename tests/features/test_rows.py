import logging

import pytest
import torch

from modalloy.errors import FeatureError
from modalloy.features import common_rows, extract


@pytest.fixture
def stores(encoder, make_collection, tmp_path):
    one = make_collection(6, corrupt=[2])
    other = make_collection(6, name="reversed", corrupt=[4])
    reverse = type(other)(other.root, other.items[::-1])
    return [
        extract(encoder, "image", collection, tmp_path / f"features{number}", shard_size=4, progress=False)
        for number, collection in enumerate((one, reverse))
    ]


def test_keeps_what_is_valid_everywhere(stores, caplog) -> None:
    ids = ["item5", "item4", "item0", "item2"]
    with caplog.at_level(logging.WARNING, logger="modalloy"):
        kept, rows = common_rows(stores, ids)
    assert kept == ["item5", "item0"]
    assert [places.tolist() for places in rows] == [[5, 0], [0, 5]]
    assert "2 of 4 items left out" in caplog.text
    torch.testing.assert_close(stores[0].embeddings(rows[0]), stores[1].embeddings(rows[1]))


def test_says_nothing_when_nothing_is_left_out(stores, caplog) -> None:
    assert common_rows(stores, ["item1"])[0] == ["item1"]
    assert not caplog.text


def test_refuses_unknown_ids_and_no_store(stores) -> None:
    with pytest.raises(FeatureError, match="'nobody'"):
        common_rows(stores, ["item1", "nobody"])
    with pytest.raises(FeatureError, match="at least one feature store"):
        common_rows([], ["item1"])
