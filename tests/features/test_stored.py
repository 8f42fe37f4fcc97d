import logging
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from modalloy import Collection
from modalloy.data import Manifest
from modalloy.errors import ConfigError, DataError, FeatureError
from modalloy.features import extract
from modalloy.features.stored import StoredFeatures
from modalloy.workflow.features import ExtractConfig


@pytest.fixture
def manifest(make_collection):
    return make_collection(5, corrupt=[2])


@pytest.fixture
def folder(encoder, manifest, tmp_path):
    for modality in ("image", "text"):
        extract(encoder, modality, manifest, tmp_path / "made" / modality, progress=False)
    return tmp_path / "made"


@pytest.fixture
def collection(manifest, tmp_path):
    return Collection(manifest, tmp_path / "features")


def test_it_is_what_its_stores_say(folder, encoder):
    stored = StoredFeatures.from_folder(folder)
    assert stored.modalities == ("image", "text") and stored.spec == f"features:{folder}"
    assert stored.name == "fake" and StoredFeatures(folder, "Mine").name == "Mine"
    for modality in stored.modalities:
        assert stored.fingerprint(modality) == encoder.fingerprint(modality)
        assert (stored.dim(modality), stored.width(modality)) == (3, 2)
    assert stored.token_grid() is None and stored.token_texts("a dog") is None


def test_one_modality_is_enough(folder):
    shutil.rmtree(folder / "image")
    stored = StoredFeatures(folder)
    assert stored.modalities == ("text",)
    with pytest.raises(ConfigError, match="encodes text, not image"):
        stored.fingerprint("image")


def test_a_collection_takes_its_features_as_they_are(folder, collection):
    stored = StoredFeatures(folder)
    for modality in stored.modalities:
        store = collection.store(stored, modality)
        assert store.folder == collection.folder(stored, modality) == folder / modality
        assert torch.equal(store.embeddings(), stored.store(modality).embeddings()) or modality == "image"
    paired = collection.paired([stored, stored])
    assert paired.image.valid.tolist() == [True, True, False, True, True]


def test_moved_features_are_found_where_they_are(folder, tmp_path):
    assert StoredFeatures(folder).store("text").spec == f"features:{folder}"
    moved = shutil.move(folder, tmp_path / "moved")
    store = StoredFeatures(moved).store("text")
    assert store.spec == f"features:{moved}"
    # What a data loader's process gets reads the same features.
    received = pickle.loads(pickle.dumps(store))
    assert torch.equal(received.embeddings(), store.embeddings()) and received.spec == store.spec


@pytest.mark.parametrize("modality", ["image", "text"])
def test_new_items_cannot_be_encoded(folder, modality):
    stored = StoredFeatures(folder)
    item = Image.new("RGB", (4, 4)) if modality == "image" else "a dog"
    encode = stored.encode_images if modality == "image" else stored.encode_texts
    message = rf"fake: a new {modality} can't be encoded.*made elsewhere.*give the encoder itself"
    with pytest.raises(ConfigError, match=message):
        encode([item])
    with pytest.raises(ConfigError, match=message):
        stored.forward(modality, [torch.zeros(1)])


@pytest.mark.parametrize(
    ("change", "modality", "message"),
    [
        (lambda items: items[:4], "image", r"image holds 1 that the collection lacks \(item4\)"),
        (lambda items: items[:4], "text", r"holds 2 that the collection lacks \(item4#0, item4#1\)"),
        (lambda items: (*items, replace(items[0], id="new")), "image", r"lacks 1 of 6 images \(new\)"),
        (lambda items: items[1:] + items[:1], "image", "images in another order"),
        (
            lambda items: tuple(replace(item, id=f"x{item.id}") for item in items),
            "image",
            r"lacks 5 of 5 images \(xitem0, xitem1, xitem2, \.\.\.\) and holds 5 that the collection lacks",
        ),
        (lambda items: (replace(items[0], captions=("other", "words")), *items[1:]), "text", "with other words"),
    ],
)
def test_features_of_other_items_are_refused(folder, manifest, tmp_path, change, modality, message):
    other = Collection(Manifest(manifest.root, change(manifest.items)), tmp_path / "features")
    with pytest.raises(FeatureError, match=rf"{message}.*manifest\.jsonl beside them"):
        other.store(StoredFeatures(folder), modality)


def test_other_pictures_of_the_same_ids_are_warned_of(folder, manifest, tmp_path, caplog):
    items = tuple(replace(item, sha256="0" * 64) for item in manifest)
    with caplog.at_level(logging.WARNING):
        store = Collection(Manifest(manifest.root, items), tmp_path / "features").store(StoredFeatures(folder), "image")
    assert len(store) == 5 and "their ids agree" in caplog.text


def test_augmented_copies(folder, manifest, encoder, collection, tmp_path):
    for copy, kept in enumerate((manifest[:2], manifest[1:4])):
        extract(encoder, "image", kept, folder / "image" / f"augment-{copy}", progress=False)
    stored = StoredFeatures(folder)
    assert stored.copies == 2
    assert collection.augmented(stored) == []
    for asked, got in ((1, 1), (2, 2), (9, 2)):
        augmented = replace(collection, extraction=ExtractConfig(augmentations=asked)).augmented(stored)
        assert [store.folder.name for store in augmented] == [f"augment-{copy}" for copy in range(got)]
    assert list(augmented[1].ids) == ["item1", "item2", "item3"]
    fewer = Collection(manifest[:3], tmp_path / "features")
    with pytest.raises(FeatureError, match=r"augment-1 holds 1 images that the collection lacks \(item3\)"):
        fewer.store(stored, "image", 1)
    with pytest.raises(FeatureError, match="augment-2 holds no finished features"):
        collection.store(stored, "image", 2)


def test_folders_without_features_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="holds no features: a feature store in its folder image, text or both"):
        StoredFeatures(tmp_path / "absent")
    shutil.move(folder / "text", folder / "image" / "text")
    with pytest.raises(FeatureError, match=r"text should hold text features, but holds image features"):
        shutil.copytree(folder / "image", folder / "text")
        StoredFeatures(folder)
    (folder / "image" / "manifest.json").unlink()
    with pytest.raises(FeatureError, match="holds no finished features"):
        StoredFeatures(folder)


def test_two_spaces_are_no_dual_encoder(folder, encoder, manifest, monkeypatch):
    shutil.rmtree(folder / "text")
    wider = type(encoder)()
    monkeypatch.setattr(wider, "dim", lambda modality: 4)
    monkeypatch.setattr(wider, "forward", lambda modality, prepared: _widened(encoder.forward(modality, prepared)))
    extract(wider, "text", manifest, folder / "text", progress=False)
    with pytest.raises(ConfigError, match="image embeddings of length 3 and text embeddings of length 4"):
        StoredFeatures(folder)


def _widened(encoded):
    return replace(encoded, embedding=torch.nn.functional.pad(encoded.embedding, (0, 1)))


def test_a_text_is_still_checked_before_it_is_refused(folder):
    with pytest.raises(DataError, match="sequence of items"):
        StoredFeatures(folder).encode_texts("a dog")
