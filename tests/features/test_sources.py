"""Augmented copies of pictures as rows to encode."""

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from modalloy.data import Manifest
from modalloy.data.images import open_image
from modalloy.data.rand_augment import RandAugment
from modalloy.errors import DataError
from modalloy.features import FeatureStore, extract
from modalloy.features.sources import AugmentedImages, Images

SMALL = {"batch_size": 2, "shard_size": 3, "workers": 2, "progress": False}


@pytest.fixture
def mixed(make_collection: Callable[..., Manifest]) -> Manifest:
    """Every third picture is a test picture; number 4, to train on, is damaged."""
    made = make_collection(9, corrupt=[4])
    items = [replace(item, split="test" if row % 3 == 2 else "train") for row, item in enumerate(made)]
    return Manifest(made.root, tuple(items))


TRAIN = ["item0", "item1", "item3", "item4", "item6", "item7"]


def test_rows_are_the_training_pictures_augmented_by_id_and_copy(mixed) -> None:
    augment = RandAugment()
    for copy in range(2):
        source = AugmentedImages(mixed, augment, copy)
        assert list(source.ids) == TRAIN
        assert [source.path(row) for row in range(len(source))] == [f"{name[4:]}.png" for name in TRAIN]
        expected = augment(open_image(mixed.root / "3.png"), f"item3/{copy}")
        assert source.load(2) == expected
    assert list(AugmentedImages(mixed, augment, 0, ("test",)).ids) == ["item2", "item5", "item8"]


def test_contents_depend_on_the_picture_the_settings_and_the_copy(mixed) -> None:
    reference = AugmentedImages(mixed, RandAugment(), 0)
    others = [AugmentedImages(mixed, RandAugment(), 1), AugmentedImages(mixed, RandAugment(flip=False), 0)]
    assert AugmentedImages(mixed, RandAugment(), 0).digest() == reference.digest()
    assert len({each.content(0) for each in (reference, *others)} | {reference.content(1)}) == 4
    assert reference.digest() != Images(mixed.split("train")).digest()


def test_a_worker_process_gets_the_same_rows(mixed) -> None:
    source = AugmentedImages(mixed, RandAugment(), 1)
    received = pickle.loads(pickle.dumps(source))
    assert received.digest() == source.digest()
    assert received.load(2) == source.load(2)


def test_a_collection_without_training_pictures_is_refused(mixed) -> None:
    with pytest.raises(DataError, match=r"no image in train to augment.*extraction.augmentations to 0"):
        AugmentedImages(mixed.split("test"), RandAugment(), 0)
    with pytest.raises(DataError, match="no split 'training'"):
        AugmentedImages(mixed, RandAugment(), 0, ("training",))


def test_augmented_features_are_those_of_the_augmented_pictures(encoder, mixed, tmp_path) -> None:
    source = AugmentedImages(mixed, RandAugment(), 1)
    store = extract(encoder, "image", mixed, tmp_path / "augment-1", source=source, **SMALL)
    assert list(store.ids) == TRAIN
    assert store.valid.tolist() == [True, True, True, False, True, True]
    assert [reject["id"] for reject in store.rejects()] == ["item4"]
    pictures = [source.load(row) for row in range(len(source)) if row != 3]
    expected = encoder.encode_images(pictures)
    torch.testing.assert_close(store.embeddings()[store.valid], expected.embedding)
    assert not torch.equal(expected.embedding, encoder.encode_images([mixed.root / "0.png"] * 5).embedding)


def test_other_settings_are_extracted_anew(encoder, mixed, tmp_path) -> None:
    def made(augment: RandAugment) -> FeatureStore:
        return extract(encoder, "image", mixed, tmp_path, source=AugmentedImages(mixed, augment, 0), **SMALL)

    first = made(RandAugment())
    digest, embeddings = first.collection, first.embeddings()
    other = made(RandAugment(magnitude=1.0, probability=1.0))
    assert other.collection != digest
    assert not torch.equal(other.embeddings(), embeddings)
    torch.testing.assert_close(made(RandAugment()).embeddings(), embeddings, equal_nan=True)


def test_nested_folders_survive_a_change_of_the_plain_features(encoder, mixed, tmp_path, files_in) -> None:
    folder, nested = tmp_path / "image", tmp_path / "image" / "augment-0"
    extract(encoder, "image", mixed, folder, **SMALL)
    extract(encoder, "image", mixed, nested, source=AugmentedImages(mixed, RandAugment(), 0), **SMALL)
    before = files_in(nested)
    fewer = Manifest(mixed.root, mixed.items[:2])
    (folder / ".partial-0-left").write_text("from a killed run")
    store = extract(encoder, "image", fewer, folder, **SMALL)
    assert [path.name for path in folder.glob("*.safetensors")] == ["shard-00000.safetensors"]
    assert not (folder / ".partial-0-left").exists()
    assert files_in(nested) == before
    assert store.verify() == [] and FeatureStore.open(nested).verify() == []
    shutil.rmtree(nested)
    assert FeatureStore.open(folder).verify() == []
