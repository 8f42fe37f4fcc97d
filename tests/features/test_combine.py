import pytest
import torch

from modalloy.encoders.base import Modality
from modalloy.errors import FeatureError
from modalloy.features import FeatureStore, combine, extract, lock

SMALL = {"batch_size": 2, "shard_size": 4, "progress": False}


@pytest.fixture
def bases(make_encoder, make_collection, tmp_path) -> list[FeatureStore]:
    manifest = make_collection(9, corrupt=[5])
    return [extract(make_encoder(weights), "image", manifest, tmp_path / weights, **SMALL) for weights in "01"]


@pytest.fixture
def both(make_encoder):
    """An encoder made of two, whose embedding is theirs side by side."""

    class Both(make_encoder):
        spec = "alloy:somewhere"

        def dim(self, modality: Modality) -> int:
            return 6

        def width(self, modality: Modality) -> int:
            return 6

    return Both("2")


def side_by_side(bases):
    return lambda rows: torch.cat([base.embeddings(rows) for base in bases], dim=1)


def test_embeddings_are_computed_and_are_the_one_token(bases, both, tmp_path):
    combined = combine(bases, both, tmp_path / "combined", side_by_side(bases))
    expected = torch.cat([base.embeddings() for base in bases], dim=1)
    torch.testing.assert_close(combined.embeddings(), expected, equal_nan=True)
    tokens, lengths = combined.tokens(torch.arange(9))
    assert lengths.tolist() == [1, 1, 1, 1, 1, 0, 1, 1, 1]
    torch.testing.assert_close(tokens, expected[combined.valid].half())
    assert combined.valid.tolist() == bases[0].valid.tolist()
    assert combined.rejects() == bases[0].rejects()
    assert combined.ids == bases[0].ids
    assert combined.verify() == []


def test_a_finished_store_is_opened(bases, both, tmp_path):
    combine(bases, both, tmp_path / "combined", side_by_side(bases))

    def fail(rows):
        raise AssertionError("computed again")

    again = combine(bases, both, tmp_path / "combined", fail)
    assert len(again) == 9


def test_an_interrupted_one_goes_on(bases, both, tmp_path, files_in):
    whole = combine(bases, both, tmp_path / "whole", side_by_side(bases))
    calls = []

    def interrupted(rows):
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return side_by_side(bases)(rows)

    with pytest.raises(KeyboardInterrupt):
        combine(bases, both, tmp_path / "parts", interrupted)
    parts = combine(bases, both, tmp_path / "parts", interrupted)
    assert len(calls) == 4  # two before the interruption, then the two shards that were missing
    assert files_in(parts.folder) == files_in(whole.folder)


def test_wrong_shapes_are_refused(bases, both, tmp_path):
    with pytest.raises(FeatureError, match=r"6 wide expected, got \(4, 3\)"):
        combine(bases, both, tmp_path / "combined", bases[0].embeddings)


def test_embeddings_that_are_not_finite_are_refused(bases, both, tmp_path):
    with pytest.raises(FeatureError, match="aren't finite"):
        combine(bases, both, tmp_path / "combined", lambda rows: torch.full((len(rows), 6), torch.inf))


def test_two_at_once_into_one_folder_are_refused(bases, both, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_WAIT_SECONDS", 0.01)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with (
        lock.only_writer(tmp_path / "link" / "combined"),
        pytest.raises(FeatureError, match="Another process is writing to"),
    ):
        combine(bases, both, tmp_path / "combined", side_by_side(bases))
    assert len(combine(bases, both, tmp_path / "combined", side_by_side(bases))) == 9


def test_an_item_put_back_into_a_base_is_combined_too(make_encoder, both, make_collection, tmp_path):
    manifest = make_collection(9)
    picture = manifest.root / "5.png"
    whole = picture.read_bytes()
    picture.write_bytes(b"not a picture")

    def combined():
        bases = [extract(make_encoder(weights), "image", manifest, tmp_path / weights, **SMALL) for weights in "01"]
        return combine(bases, both, tmp_path / "combined", side_by_side(bases))

    assert not combined().valid[5]
    picture.write_bytes(whole)
    assert combined().valid.all() and combined().embeddings().isfinite().all()
