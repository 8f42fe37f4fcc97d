"""Augmented copies of the training images, on their way from the configuration into a fusion."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from tiny_run import SETTINGS, TRUNCATED

from modalloy import Alloy, Collection, load_encoder
from modalloy.data import Manifest
from modalloy.data.rand_augment import RandAugment
from modalloy.encoders.efficientnet_lite import EfficientNetLite
from modalloy.errors import ConfigError, DataError
from modalloy.features.sources import AugmentedImages
from modalloy.fusion import ScoreFusion, TowerConfig, input_shapes
from modalloy.training.fusion_training import FusionTraining
from modalloy.workflow.config import load_config, save_config
from modalloy.workflow.doctor import examine
from modalloy.workflow.features import ExtractConfig
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import FusionConfig
from modalloy.workflow.run import Run

TWICE = ExtractConfig(augmentations=2, augmentation=RandAugment(flip=False))


@pytest.fixture(scope="module")
def features(finished_run, tmp_path_factory):
    """A copy of a run's features, to which those of augmented copies are added."""
    return shutil.copytree(finished_run / "features", tmp_path_factory.mktemp("augmented") / "features")


@pytest.fixture(scope="module")
def collection(features, tiny_manifest):
    return Collection(tiny_manifest, features, TWICE)


@pytest.fixture(scope="module")
def paired(collection, encoders):
    return collection.paired(encoders, augmented=True)


def test_an_aligned_encoders_copies_are_made_of_its_backbones(collection, encoders, paired, tiny_manifest):
    train = tiny_manifest.split("train")
    for encoder, copies in zip(encoders, paired.image.augmented, strict=True):
        assert [store.folder for store in copies.stores] == [
            collection.folder(encoder, "image") / f"augment-{copy}" for copy in range(2)
        ]
        for copy, store in enumerate(copies.stores):
            source = AugmentedImages(tiny_manifest, TWICE.augmentation, copy)
            assert list(store.ids) == train.image_ids == list(source.ids)
            assert [reject["id"] for reject in store.rejects()] == [n for n in TRUNCATED if TRUNCATED[n] == "train"]
            rows = store.valid.nonzero().squeeze(1)[:3]
            expected = encoder.encode_images([source.load(row) for row in rows.tolist()]).embedding
            assert torch.allclose(store.embeddings(rows), expected, atol=1e-4)
            assert store.verify() == []
        assert not torch.equal(copies.stores[0].embeddings()[rows], copies.stores[1].embeddings()[rows])
    backbone = load_encoder("efficientnet-lite0@64")
    assert (collection.folder(backbone, "image") / "augment-1" / "manifest.json").exists()


def test_stored_copies_are_used_where_the_backbone_is_not_installed(collection, encoders, paired, monkeypatch):
    shutil.rmtree(collection.folder(encoders[0], "image", 0))

    def absent(*_):
        raise ConfigError("not installed")

    monkeypatch.setattr(type(encoders[0]), "backbone", absent)
    again = collection.store(encoders[0], "image", 0)
    assert torch.equal(again.embeddings()[again.valid], paired.image.augmented[0].stores[0].embeddings()[again.valid])


def test_an_alloys_copies_are_made_of_its_encoders(collection, encoders, paired, tmp_path):
    alloy = Alloy(encoders, ScoreFusion([1.0, 2.0], input_shapes(paired.image, paired.text)), "mean")
    alloy.save(tmp_path / "alloy")
    stores = collection.augmented(alloy)
    assert [store.folder.name for store in stores] == ["augment-0", "augment-1"]
    source = AugmentedImages(collection.manifest, TWICE.augmentation, 1)
    row = int(stores[1].valid.nonzero()[0])
    expected = alloy.encode_images([source.load(row)]).embedding
    assert torch.allclose(stores[1].embeddings(torch.tensor([row])), expected, atol=1e-4)


def test_without_augmentations_there_are_none(encoders, features, tiny_manifest, monkeypatch):
    plain = Collection(tiny_manifest, features)
    monkeypatch.setattr(EfficientNetLite, "forward", None)
    assert plain.augmented(encoders[0]) == []
    assert plain.paired(encoders, augmented=True).image.copies == 0


def test_captions_have_no_copies(collection, encoders):
    assert collection.copies(load_encoder("minilm")) == 0
    with pytest.raises(ConfigError, match="only images are augmented, got copy 0 of text"):
        collection.store(encoders[0], "text", 0)


def test_features_made_elsewhere_bring_their_own_copies(collection, encoders, paired, tmp_path):
    """An alloy has as many copies as that encoder of it that has fewest."""
    features = shutil.copytree(collection.features, tmp_path / "features")
    # Among the others, since the tokens stay in the backbones' folders.
    elsewhere = features / "elsewhere"
    for modality in ("image", "text"):
        shutil.copytree(collection.folder(encoders[0], modality), elsewhere / modality)
    shutil.rmtree(elsewhere / "image" / "augment-1")
    stored = load_encoder(f"features:{elsewhere}")
    (copy,) = collection.augmented(stored)
    assert copy.folder == elsewhere.resolve() / "image" / "augment-0"
    alloy = Alloy([stored, encoders[1]], ScoreFusion([1.0, 2.0], input_shapes(paired.image, paired.text)), "mean")
    three = Collection(collection.manifest, features, replace(TWICE, augmentations=3))
    assert [three.copies(each) for each in (encoders[1], stored, alloy)] == [3, 1, 1]
    both = collection.paired([stored, encoders[1]], augmented=True).image
    assert [len(each) for each in both.augmented] == [1, 2]


def test_a_collection_without_training_images_cannot_be_augmented(tiny_manifest, encoders, tmp_path):
    test = Collection(tiny_manifest.split("test"), tmp_path, TWICE)
    with pytest.raises(DataError, match=r"no image in train to augment.*extraction.augmentations to 0"):
        test.augmented(load_encoder("efficientnet-lite0@64"))


def test_a_change_of_the_training_images_is_extracted_where_it_changed(collection, encoders, paired, tmp_path):
    manifest = collection.manifest
    moved = [replace(item, split="val") if item.id == manifest.split("train")[0].id else item for item in manifest]
    folder = shutil.copytree(collection.features, tmp_path / "features")
    store = Collection(Manifest(manifest.root, tuple(moved)), folder, TWICE).store(encoders[0], "image", 0)
    assert list(store.ids) == manifest.split("train").image_ids[1:]
    before = paired.image.augmented[0].stores[0]
    rows = store.valid.nonzero().squeeze(1)
    expected = before.embeddings(before.rows_of([store.ids[row] for row in rows.tolist()]))
    assert torch.allclose(store.embeddings(rows), expected, atol=1e-4)


def test_trained_methods_use_the_copies_and_others_do_not(collection, encoders, features, tiny_manifest, tmp_path):
    training = FusionTraining(epochs=1, batch_size=8, queue_size=32, learning_rate=1e-3)
    config = FusionConfig(TowerConfig(token_dim=8, heads=2), training, training)
    plain = FusionFit(encoders, Collection(tiny_manifest, features), config, tmp_path / "plain")
    with_copies = FusionFit(encoders, collection, config, tmp_path / "augmented")
    never = replace(training, augment_probability=0.0)
    unused = FusionFit(encoders, collection, replace(config, first_stage=never), tmp_path / "unused")
    losses = []
    for fits in (plain, with_copies, unused):
        fits.fit("HADA stage 1")
        (record,) = fits.folder.glob("*/*/fit.json")
        losses.append(json.loads(record.read_text())["history"][1]["contrastive"])
    assert losses[0] == losses[2] != losses[1]
    weights = [fits.fit("validation-tuned weighted cosine").state_dict() for fits in (plain, with_copies)]
    assert all(torch.equal(a, b) for a, b in zip(*map(dict.values, weights), strict=True))


def test_doctor_checks_the_copies(collection, encoders, paired, tmp_path):
    folder = shutil.copytree(collection.features, tmp_path / "features")
    found = examine(folder)
    assert found["problems"] == []
    copies = [store for store in found["checked"] if "augment-" in store]
    assert len(copies) >= 8
    (damaged,) = [path for path in folder.glob("efficientnet*/image/augment-1/*.safetensors")]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert any("augment-1" in problem["message"] for problem in examine(folder)["problems"])


def test_a_configuration_can_ask_for_copies(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"collection": "demo", "folder": "run", **SETTINGS}))
    overrides = {
        "extraction": {"augmentations": 3, "augmentation": {"flip": False, "crop": [0.8, 1], "magnitude": 5}},
        "fusion.first_stage.augment_probability": 0.5,
    }
    config = load_config(path, overrides)
    assert config.extraction.augmentations == 3
    assert config.extraction.augmentation == RandAugment(flip=False, crop=(0.8, 1.0), magnitude=5.0)
    assert config.fusion.first_stage.augment_probability == 0.5
    save_config(config, path)
    assert load_config(path).extraction == config.extraction
    for key, value, said in (
        ("augmentations", -1, "augmentations must be at least 0"),
        ("augmentation", {"magnitude": 11}, "magnitude must lie in"),
        ("augmentation", {"crop": [0.5]}, "crop"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config(path, {f"extraction.{key}": value})


def test_copies_make_another_run_and_how_they_are_extracted_does_not(finished_run):
    config = load_config(finished_run / "config.yaml", {"folder": str(finished_run)})

    def fingerprint(**extraction) -> str:
        return Run(replace(config, extraction=ExtractConfig(**extraction)))._fingerprint()

    reference = json.loads((finished_run / "report.json").read_text())["fingerprint"]
    assert fingerprint() == fingerprint(batch_size=7) == fingerprint(augmentation=RandAugment(seed=3)) == reference
    changed = [
        fingerprint(augmentations=1),
        fingerprint(augmentations=2),
        fingerprint(augmentations=2, augmentation=RandAugment(seed=3)),
    ]
    assert len({reference, *changed}) == 4
    assert fingerprint(augmentations=2, workers=3) == changed[1]
