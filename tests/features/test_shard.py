from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modalloy.encoders.base import Fingerprint
from modalloy.errors import FeatureError
from modalloy.features.shard import Reject, Shard, ShardLabel, read_shard, write_shard

FINGERPRINT = Fingerprint("fake image", "1", "0" * 64, "1" * 64)


def shard_of(lengths: list[int], dim: int = 3, width: int = 2) -> Shard:
    generator = torch.Generator().manual_seed(len(lengths))
    return Shard(
        embedding=torch.randn(len(lengths), dim, generator=generator),
        valid=torch.tensor([length > 0 for length in lengths], dtype=torch.bool),
        tokens=torch.randn(sum(lengths), width, generator=generator).half(),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
    )


@settings(max_examples=30)
@given(
    st.lists(st.integers(0, 4), max_size=6),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(st.text(st.characters(codec=None), max_size=20), max_size=3),
)
def test_round_trip(lengths: list[int], dim: int, width: int, reasons: list[str]) -> None:
    shard = shard_of(lengths, dim, width)
    rejects = tuple(Reject(row, f"id{row}", "a/b.png", reason) for row, reason in enumerate(reasons))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "shard.safetensors"
        record = write_shard(path, shard, ShardLabel(FINGERPRINT, "digest", rejects))
        stored = read_shard(path)
        assert (record.file, record.rows, record.bytes) == (path.name, len(lengths), path.stat().st_size)
    assert stored.label == ShardLabel(FINGERPRINT, "digest", rejects)
    assert stored.sha256 == record.sha256 and stored.is_intact()
    for name, tensor in shard.tensors().items():
        assert torch.equal(stored.shard.tensors()[name], tensor), name


def test_equal_shards_are_equal_byte_for_byte(tmp_path: Path) -> None:
    label = ShardLabel(FINGERPRINT, "digest", (Reject(0, "a", "a.png", "broken"),))
    for name in ("one", "two"):
        write_shard(tmp_path / name, shard_of([1, 2]), label)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_every_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "shard"
    write_shard(path, shard_of([1, 2]), ShardLabel(FINGERPRINT, "digest", (Reject(0, "a", "a.png", "broken"),)))
    whole = path.read_bytes()
    unnoticed = []
    for position in range(len(whole)):
        # A new file each time: the old one stays mapped.
        damaged = tmp_path / f"{position}"
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        try:
            if read_shard(damaged).is_intact():
                unnoticed.append(chr(whole[position]))
        except FeatureError:
            pass
    assert not unnoticed


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_shard_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "shard-00003.safetensors"
    write_shard(path, shard_of([1, 2]), ShardLabel(FINGERPRINT, "digest", ()))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(FeatureError, match=r"shard-00003.safetensors is damaged .*; delete it and run"):
        read_shard(path)


def test_missing_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match=r"nowhere is missing; delete it"):
        read_shard(tmp_path / "nowhere")


def test_safetensors_file_of_others_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FeatureError, match=r"model.safetensors is damaged"):
        read_shard(tmp_path / "model.safetensors")
