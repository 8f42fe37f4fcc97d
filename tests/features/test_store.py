import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modalloy.errors import FeatureError
from modalloy.features import FeatureStore, extract
from modalloy.features.shard import read_shard, write_shard


@pytest.fixture
def store(encoder, make_collection, tmp_path) -> FeatureStore:
    collection = make_collection(11, corrupt=[5])
    return extract(encoder, "image", collection, tmp_path / "features", batch_size=2, shard_size=4, progress=False)


def test_any_rows_in_any_order(store) -> None:
    embeddings, (tokens, lengths) = store.embeddings(), store.tokens()
    of_each = tokens.split(lengths.tolist())

    @given(st.lists(st.integers(0, len(store) - 1), max_size=12))
    def check(rows: list[int]) -> None:
        numbers = torch.tensor(rows, dtype=torch.long)
        torch.testing.assert_close(store.embeddings(numbers), embeddings[numbers], equal_nan=True)
        picked, picked_lengths = store.tokens(numbers)
        assert picked_lengths.tolist() == lengths[numbers].tolist()
        for part, row in zip(picked.split(picked_lengths.tolist()), rows, strict=True):
            assert torch.equal(part, of_each[row])

    check()


@pytest.mark.parametrize("rows", [slice(3, 9), slice(None, None, 2), slice(-2, None), slice(20, 30)])
def test_slices(store, rows: slice) -> None:
    torch.testing.assert_close(store.embeddings(rows), store.embeddings()[rows], equal_nan=True)
    assert torch.equal(store.tokens(rows)[1], store.tokens()[1][rows])


@pytest.mark.parametrize("row", [-1, 11])
def test_refuses_rows_out_of_range(store, row: int) -> None:
    with pytest.raises(FeatureError, match=r"go from 0 to 10, got"):
        store.embeddings(torch.tensor([0, row]))
    with pytest.raises(FeatureError, match=r"go from 0 to 10, got"):
        store.tokens(torch.tensor([0, row]))


def test_rows_of_ids(store) -> None:
    assert store.rows_of(["item10", "item0", "item10"]).tolist() == [10, 0, 10]
    assert store.rows_of([]).tolist() == []
    with pytest.raises(FeatureError, match=r"2 of 3 ids aren't in .*features, the first is 'item99'"):
        store.rows_of(["item1", "item99", "item98"])


def test_changing_what_was_read_changes_no_feature(store) -> None:
    first, (tokens, _) = store.embeddings(slice(0, 1)), store.tokens(slice(0, 1))
    expected, expected_tokens = first.clone(), tokens.clone()
    first.zero_()
    tokens.zero_()
    torch.testing.assert_close(store.embeddings(slice(0, 1)), expected)
    torch.testing.assert_close(store.tokens(slice(0, 1))[0], expected_tokens)
    assert store.verify() == []


def test_only_a_few_shards_stay_open(store, monkeypatch) -> None:
    monkeypatch.setattr("modalloy.features.store._OPEN_SHARDS", 1)
    reopened = FeatureStore.open(store.folder)
    torch.testing.assert_close(reopened.embeddings(), store.embeddings(), equal_nan=True)
    torch.testing.assert_close(reopened.tokens(), store.tokens())
    assert reopened._shard.cache_info().currsize == 1


def test_can_be_sent_to_another_process(store) -> None:
    copy = pickle.loads(pickle.dumps(store))
    torch.testing.assert_close(copy.embeddings(), store.embeddings(), equal_nan=True)


def test_moves_with_its_folder(store, tmp_path) -> None:
    expected = store.embeddings()
    shutil.move(store.folder, tmp_path / "elsewhere")
    torch.testing.assert_close(FeatureStore.open(tmp_path / "elsewhere").embeddings(), expected, equal_nan=True)


def test_expected_fingerprint(store, encoder, make_encoder) -> None:
    FeatureStore.open(store.folder, expect=encoder.fingerprint("image"))
    with pytest.raises(FeatureError, match=r"weights_sha256: expected 111\S+, got 000\S+\)\. Extract again") as error:
        FeatureStore.open(store.folder, expect=make_encoder("1").fingerprint("image"))
    assert "revision" not in str(error.value)
    with pytest.raises(FeatureError, match=r"\(name: expected fake text, got fake image\)"):
        FeatureStore.open(store.folder, expect=encoder.fingerprint("text"))


def test_unfinished_store(store) -> None:
    (store.folder / "manifest.json").unlink()
    with pytest.raises(FeatureError, match=r"holds no finished features .*run `modalloy extract`"):
        FeatureStore.open(store.folder)


def test_truncated_shard_is_named_when_opened(store) -> None:
    path = store.folder / "shard-00001.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FeatureError, match=rf"shard-00001\S+ should have {size} bytes, got {size - 10}; delete it"):
        FeatureStore.open(store.folder)


def test_missing_shards_are_counted(store) -> None:
    for number in (0, 2):
        (store.folder / f"shard-0000{number}.safetensors").unlink()
    with pytest.raises(FeatureError, match=r"shard-00000\S+ is missing; delete.*\(1 more file"):
        FeatureStore.open(store.folder)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["shard-00002.safetensors", "ids.jsonl", "rejects.jsonl"])
def test_verify_names_a_file_with_a_wrong_checksum(store, name: str) -> None:
    assert store.verify() == []
    damage(store.folder / name)
    assert store.verify() == [
        f"{store.folder / name} doesn't match its checksum; "
        "delete it and run the same step again: only what is missing is made again."
    ]


def test_verify_names_what_has_gone_since(store) -> None:
    (store.folder / "shard-00000.safetensors").unlink()
    (problem,) = store.verify()
    assert "shard-00000.safetensors is missing" in problem


def test_sound_shard_of_another_run_is_refused(store) -> None:
    path = store.folder / "shard-00000.safetensors"
    stored = read_shard(path)
    write_shard(path, replace(stored.shard, embedding=-stored.shard.embedding), stored.label)
    with pytest.raises(FeatureError, match=r"shard-00000\S+ isn't the one that the manifest names"):
        FeatureStore.open(store.folder).embeddings()


def test_manifest_of_another_program(store) -> None:
    (store.folder / "manifest.json").write_text('{"format": "parquet"}')
    with pytest.raises(FeatureError, match=r"format should be 'modalloy-features-1', got 'parquet'"):
        FeatureStore.open(store.folder)
