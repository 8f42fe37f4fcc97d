import pytest
import torch

from modalloy.data.manifest import Manifest
from modalloy.encoders.base import Encoded
from modalloy.errors import ConfigError, FeatureError
from modalloy.features import extract
from modalloy.features.estimate import Estimate, estimate, estimate_derived, free_bytes
from modalloy.features.sources import source_of

SMALL = {"batch_size": 8, "shard_size": 32, "workers": 1, "progress": False}


@pytest.fixture
def wide(make_encoder):
    """As wide as a real one: features, not headers, take the disk."""

    class Wide(make_encoder):
        def dim(self, modality):
            return 300

        def width(self, modality):
            return 200

        def forward(self, modality, prepared):
            encoded = super().forward(modality, prepared)
            return Encoded(encoded.embedding.repeat(1, 100) / 10, encoded.tokens.repeat(1, 100), encoded.lengths)

    return Wide()


def disk_of(folder) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.parametrize("modality", ["image", "text"])
def test_foretells_the_disk(wide, make_collection, tmp_path, modality) -> None:
    collection, folder = make_collection(150), tmp_path / "features"
    source = source_of(collection, modality)
    todo = estimate(wide, modality, source, folder, shard_size=32, sample=48)
    assert (todo.rows, todo.stored) == (len(source), 0) and todo.seconds > 0
    assert not folder.exists()
    extract(wide, modality, collection, folder, **SMALL)
    assert todo.bytes == pytest.approx(disk_of(folder), rel=0.1)
    assert estimate(wide, modality, source, folder, shard_size=32) == Estimate(len(source), len(source), 0, 0.0)


def test_counts_only_what_is_missing(wide, make_collection, tmp_path, files_in) -> None:
    collection, folder = make_collection(100), tmp_path / "features"
    source = source_of(collection, "image")
    extract(wide, "image", collection, folder, **SMALL)
    missing = folder / "shard-00001.safetensors"
    size = missing.stat().st_size
    missing.unlink()
    before = files_in(folder)
    todo = estimate(wide, "image", source, folder, shard_size=32, sample=32)
    assert (todo.rows, todo.stored) == (100, 68)
    # The ids are written anew.
    assert todo.bytes == pytest.approx(size + (folder / "ids.jsonl").stat().st_size, rel=0.1)
    assert files_in(folder) == before


def test_rejected_rows_take_no_tokens(wide, make_collection, tmp_path) -> None:
    collection = make_collection(60, corrupt=range(0, 60, 2))
    todo = estimate(wide, "image", source_of(collection, "image"), tmp_path / "features", shard_size=32, sample=60)
    extract(wide, "image", collection, tmp_path / "features", **SMALL)
    rejects = (tmp_path / "features" / "rejects.jsonl").stat().st_size
    assert todo.bytes == pytest.approx(disk_of(tmp_path / "features") - 2 * rejects, rel=0.1)


def test_derived_stores_are_foretold_without_a_sample(wide, make_collection, tmp_path) -> None:
    source = source_of(make_collection(40), "image")
    without = estimate_derived(wide, "image", source, tmp_path / "features", tokens=0)
    with_one = estimate_derived(wide, "image", source, tmp_path / "features", tokens=1)
    assert with_one.bytes - without.bytes == 40 * (2 * 200 + 8)
    assert without.bytes == pytest.approx(40 * 4 * 300, rel=0.1)


def test_other_weights_and_options_out_of_range_are_refused(make_encoder, make_collection, tmp_path) -> None:
    collection, folder = make_collection(4), tmp_path / "features"
    source = source_of(collection, "image")
    with pytest.raises(ConfigError, match="sample must be at least 1, got 0"):
        estimate(make_encoder(), "image", source, folder, sample=0)
    extract(make_encoder("0"), "image", collection, folder, **SMALL)
    with pytest.raises(FeatureError, match="made by another encoder"):
        estimate(make_encoder("1"), "image", source, folder)


def test_an_empty_collection_takes_nothing(encoder, tmp_path) -> None:
    nothing = estimate(encoder, "image", source_of(Manifest(tmp_path, ()), "image"), tmp_path / "features")
    assert nothing == Estimate(0, 0, 0, 0.0)


def test_free_disk_of_a_folder_that_is_not_there_yet(tmp_path) -> None:
    assert free_bytes(tmp_path / "a" / "b") == pytest.approx(free_bytes(tmp_path), rel=0.01)
    assert free_bytes("relative") > 0


def test_it_leaves_the_random_numbers_alone(encoder, make_collection, tmp_path) -> None:
    state = torch.get_rng_state()
    estimate(encoder, "image", source_of(make_collection(4), "image"), tmp_path / "features")
    assert torch.equal(torch.get_rng_state(), state)
