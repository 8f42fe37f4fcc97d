import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from modalloy import Collection, load_encoder
from modalloy.data import Manifest
from modalloy.encoders import Fingerprint
from modalloy.encoders.efficientnet_lite import EfficientNetLite
from modalloy.errors import ConfigError, FeatureError


@pytest.fixture
def aligned(run_copy):
    return load_encoder(f"hacan:{run_copy / 'inputs' / '1'}")


@pytest.fixture
def collection(run_copy, tiny_manifest):
    return Collection(tiny_manifest, run_copy / "features")


@pytest.fixture
def images_backbone(run_copy) -> Path:
    return run_copy / "features" / "efficientnet-lite0@64" / "image"


def test_features_are_extracted_once(tiny_manifest, tmp_path, monkeypatch):
    few = Manifest(tiny_manifest.root, tiny_manifest.items[:3])
    encoder = load_encoder("subwords")
    store = Collection(few, str(tmp_path / "features")).store(encoder, "text")
    assert store.folder == tmp_path / "features" / "subwords" / "text"
    assert torch.equal(store.embeddings(), encoder.encode_texts(few.captions).embedding)
    monkeypatch.setattr(type(encoder), "forward", None)
    again = Collection(few, tmp_path / "features").store(encoder, "text")
    assert torch.equal(again.embeddings(), store.embeddings())


def test_an_aligned_encoder_projects_its_backbones_features(collection, aligned, images_backbone):
    store = collection.store(aligned, "image")
    rows = store.valid.nonzero().squeeze(1)[:3]
    paths = [collection.manifest.absolute(collection.manifest[row]) for row in rows.tolist()]
    fresh = aligned.encode_images(paths)
    assert torch.allclose(store.embeddings(rows), fresh.embedding, atol=1e-5)
    # Its tokens stay where the backbone's features are.
    assert not list(store.folder.glob("*token*"))
    tokens, lengths = store.tokens(rows)
    assert torch.equal(lengths, fresh.lengths)
    assert torch.allclose(tokens.float(), fresh.tokens, atol=1e-2)


def test_stored_features_are_projected_where_the_backbone_is_not_installed(collection, aligned, monkeypatch):
    shutil.rmtree(collection.folder(aligned, "image"))

    def absent(*_):
        raise ConfigError("not installed")

    monkeypatch.setattr(type(aligned), "backbone", absent)
    assert len(collection.store(aligned, "image")) == len(collection.manifest)


def test_a_model_in_a_folder_has_a_features_folder_of_its_own(collection, aligned):
    other = load_encoder(f"hacan:{Path(aligned.spec.partition(':')[2]).parent / '2'}")
    folders = {collection.folder(encoder, side) for encoder in (aligned, other) for side in ("image", "text")}
    assert len(folders) == 4
    assert all(folder.is_dir() for folder in folders)


def test_a_truncated_shard_is_made_again(collection, aligned, images_backbone):
    whole = collection.store(aligned, "image").embeddings()
    shard = images_backbone / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    mended = collection.store(aligned, "image")
    assert torch.allclose(mended.embeddings(), whole, atol=1e-6, equal_nan=True)
    assert mended.verify() == []


def test_a_changed_collection_is_extracted_where_it_changed(collection, aligned, tiny_manifest):
    changed = replace(tiny_manifest[0], captions=("something else",))
    other = Collection(Manifest(tiny_manifest.root, (changed, *tiny_manifest.items[1:])), collection.features)
    store = other.store(aligned, "text")
    expected = aligned.encode_texts(["something else"]).embedding
    assert torch.allclose(store.embeddings(store.rows_of([f"{changed.id}#0"])), expected, atol=1e-5)


def test_features_of_other_weights_are_refused(collection, aligned, monkeypatch):
    fingerprint = EfficientNetLite.fingerprint

    def other(self, modality) -> Fingerprint:
        return replace(fingerprint(self, modality), weights_sha256="0" * 64)

    monkeypatch.setattr(EfficientNetLite, "fingerprint", other)
    with pytest.raises(FeatureError, match="made by another encoder or preprocessing"):
        collection.store(load_encoder("efficientnet-lite0@64"), "image")


def test_an_encoder_of_one_modality_cannot_be_paired(collection, aligned):
    with pytest.raises(ConfigError, match=r"encodes texts only; align it .*modalloy align"):
        collection.paired([aligned, load_encoder("subwords")])
