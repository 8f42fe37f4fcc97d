import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from modalloy.errors import CheckpointError, ConfigError, DataError
from modalloy.features import extract
from modalloy.fusion import (
    Alloy,
    FeatureSet,
    Fuser,
    InputShape,
    Mixture,
    Rotated,
    ScoreFusion,
    TowerConfig,
    TowerFuser,
)

CAPTIONS = ["10 200 30", "250 0 7 and more", "90 90 90"]
PICTURES = [Image.new("RGB", (2, 2), colour) for colour in ((9, 200, 40), (1, 2, 3), (255, 0, 128))]
CONFIG = TowerConfig(token_dim=4, heads=2, dropout=0.5, weighted_inputs=(1,))


def shapes(encoders) -> list[InputShape]:
    return [InputShape(e.dim("image"), e.width("image"), e.width("text")) for e in encoders]


def tower_fuser(encoders, config: TowerConfig = CONFIG, seed: int = 0) -> TowerFuser:
    torch.manual_seed(seed)
    fuser = TowerFuser(config, shapes(encoders))
    for parameter in fuser.towers.parameters():
        nn.init.normal_(parameter, std=0.4)
    if config.weighted_inputs:
        nn.init.constant_(fuser.similarity.alpha, 0.3 / len(config.weighted_inputs))
    return fuser


@pytest.fixture
def load(monkeypatch, make_encoder):
    """Encoders of the fake kind, and alloys, behind `load_encoder`; the weights that every fake one now has."""
    now = {"weights": "a"}

    def load_encoder(spec: str):
        kind, colon, argument = spec.partition(":")
        if kind == "alloy":
            return Alloy.from_pretrained(argument)
        encoder = make_encoder.load(argument) if colon else make_encoder(int(spec.removeprefix("colours-")))
        encoder.weights = now["weights"]
        return encoder

    monkeypatch.setattr("modalloy.fusion.alloy.load_encoder", load_encoder)
    return now


@pytest.fixture
def encoders(make_encoder):
    return [make_encoder(0), make_encoder(1)]


@pytest.fixture
def alloy(encoders) -> Alloy:
    return Alloy(encoders, tower_fuser(encoders), name="two colours")


def same_vectors(one: Alloy, other: Alloy) -> bool:
    images = [alloy.encode_images(PICTURES).embedding for alloy in (one, other)]
    texts = [alloy.encode_texts(CAPTIONS).embedding for alloy in (one, other)]
    return torch.equal(*images) and torch.equal(*texts)


@pytest.mark.parametrize("kind", ["towers", "scores"])
def test_it_embeds_as_its_fuser_does_stored_features(encoders, make_collection, make_feature_set, tmp_path, kind):
    fuser: Fuser = tower_fuser(encoders) if kind == "towers" else ScoreFusion([1.0, 2.0], shapes(encoders))
    alloy = Alloy(encoders, fuser)
    manifest = make_collection(tmp_path / "pictures", {"train": 5})
    for modality in ("image", "text"):
        features = make_feature_set(manifest, tmp_path / "features", encoders, modality)
        expected = fuser.embed_rows(features, torch.arange(len(features)))
        encoded = (
            alloy.encode_images([manifest.absolute(item) for item in manifest])
            if modality == "image"
            else alloy.encode_texts(manifest.captions, batch_size=3)
        )
        # Stored tokens are rounded to float16.
        torch.testing.assert_close(encoded.embedding, expected, rtol=0, atol=2e-3)
        assert torch.equal(encoded.tokens, encoded.embedding)
        assert encoded.lengths.tolist() == [1] * len(features)
        assert encoded.embedding.shape[1] == alloy.dim(modality) == alloy.width(modality) == fuser.dim
        assert not encoded.embedding.requires_grad


def test_its_inner_product_is_the_weighted_similarity(encoders, alloy):
    fused = {}
    own = {}
    for modality, items in (("image", PICTURES), ("text", CAPTIONS)):
        encode = alloy.encode_images if modality == "image" else alloy.encode_texts
        fused[modality] = encode(items).embedding[:, : alloy.fuser.fused_dim] / 0.7**0.5
        own[modality] = getattr(encoders[1], f"encode_{modality}s")(items).embedding
    product = alloy.encode_images(PICTURES).embedding @ alloy.encode_texts(CAPTIONS).embedding.T
    expected = 0.7 * fused["image"] @ fused["text"].T + 0.3 * own["image"] @ own["text"].T
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(fused["image"].norm(dim=-1), torch.ones(3))


def test_its_vectors_can_enter_a_training(alloy):
    head = nn.Linear(alloy.dim("text"), 2)
    head(alloy.encode_texts(CAPTIONS).embedding).sum().backward()
    assert head.weight.grad is not None


def test_a_batch_does_not_change_an_item(alloy):
    alone = torch.cat([alloy.encode_texts([caption]).embedding for caption in CAPTIONS])
    torch.testing.assert_close(alone, alloy.encode_texts(CAPTIONS).embedding)


def test_an_item_that_an_encoder_refuses_is_refused(alloy):
    with pytest.raises(DataError, match="refused"):
        alloy.encode_texts(["refused"])


def test_a_rotated_alloy_is_loaded_whole(encoders, load, tmp_path):
    for number, encoder in enumerate(encoders):
        encoder.save(tmp_path / str(number))
    inner = tower_fuser(encoders)
    fuser = Rotated(inner, torch.linalg.qr(torch.randn(inner.dim, inner.dim))[0], dim=5)
    alloy = Alloy(encoders, fuser)
    alloy.save(tmp_path / "alloy")
    loaded = Alloy.from_pretrained(tmp_path / "alloy")
    assert loaded.dim("image") == 5 and same_vectors(alloy, loaded)
    assert loaded.fingerprint("text") == alloy.fingerprint("text")
    assert loaded.fingerprint("text") != Alloy(encoders, Rotated(inner, torch.eye(inner.dim))).fingerprint("text")


def fuser_of_kind(encoders, kind: str) -> Fuser:
    if kind == "scores":
        return ScoreFusion([1.0, 2.0], shapes(encoders))
    if kind == "mixture":
        members = [fuser_of_kind(encoders, each) for each in ("hada", "scores", "concat-linear")]
        inner = Mixture(members, [], [0.5, 1.0, 0.0], shapes(encoders))
        return Mixture([inner, members[2]], [1, 0], [3.0, 1.0, 0.0, 0.5], shapes(encoders))
    return tower_fuser(encoders, TowerConfig(kind, token_dim=4, heads=2, weighted_inputs=(1, 0)))


@pytest.mark.parametrize("kind", ["hada", "concat-linear", "scores", "mixture"])
def test_a_saved_alloy_is_loaded_whole(encoders, load, tmp_path, kind):
    fuser = fuser_of_kind(encoders, kind)
    alloy = Alloy(encoders, fuser, name="my alloy")
    before = {modality: alloy.fingerprint(modality) for modality in alloy.modalities}
    alloy.save(tmp_path / "run")
    loaded = Alloy.from_pretrained(tmp_path / "run")
    assert loaded.name == "my alloy"
    assert loaded.spec == alloy.spec == f"alloy:{tmp_path / 'run'}"
    assert same_vectors(loaded, alloy)
    assert not loaded.fuser.training
    assert {modality: loaded.fingerprint(modality) for modality in loaded.modalities} == before


def test_loading_draws_no_different_weights_and_saving_again_changes_nothing(alloy, load, tmp_path):
    alloy.save(tmp_path / "one")
    Alloy.from_pretrained(tmp_path / "one").save(tmp_path / "two")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_fingerprint_is_of_weights_configuration_and_encoders(encoders, make_encoder):
    def digest(used, fuser: Fuser) -> str:
        return Alloy(used, fuser).fingerprint("image").digest

    reference = digest(encoders, tower_fuser(encoders))
    assert digest(encoders, tower_fuser(encoders)) == reference
    assert digest(encoders, tower_fuser(encoders, seed=1)) != reference
    retrained = [encoders[0], make_encoder(1, weights="c")]
    assert digest(retrained, tower_fuser(encoders)) != reference
    # The same weights, but another input in the similarity.
    other = TowerFuser(TowerConfig(token_dim=4, heads=2, dropout=0.5, weighted_inputs=(0,)), shapes(encoders))
    other.load_state_dict(tower_fuser(encoders).state_dict())
    assert digest(encoders, other) != reference
    modalities = [Alloy(encoders, tower_fuser(encoders)).fingerprint(m).digest for m in ("image", "text")]
    assert modalities[0] != modalities[1]


def test_a_run_can_be_moved_with_its_encoders(make_encoder, load, tmp_path, monkeypatch):
    run = tmp_path / "run"
    encoders = [make_encoder(0), make_encoder(1)]
    for name, encoder in zip(("first", "second"), encoders, strict=True):
        encoder.save(run / "encoders" / name)
    alloy = Alloy(encoders, tower_fuser(encoders))
    alloy.save(run / "alloy")
    config = json.loads((run / "alloy/config.json").read_text())
    specs = [recorded["spec"] for recorded in config["encoders"]]
    assert specs == ["colours:../encoders/first", "colours:../encoders/second"]
    shutil.move(run, tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    for folder in (tmp_path / "moved/alloy", Path("alloy")):
        moved = Alloy.from_pretrained(folder)
        assert same_vectors(moved, alloy)
        assert moved.spec == f"alloy:{tmp_path / 'moved/alloy'}"
        assert moved.encoders[1].spec == f"colours:{tmp_path / 'moved/encoders/second'}"


def test_a_run_behind_a_link_can_be_moved(make_encoder, load, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    encoders = [make_encoder(0), make_encoder(1)]
    for encoder in encoders:
        encoder.save(tmp_path / f"link/{encoder.number}")
    alloy = Alloy(encoders, tower_fuser(encoders))
    alloy.save(tmp_path / "link/alloy")
    (tmp_path / "link").unlink()
    (tmp_path / "disk").rename(tmp_path / "moved")
    assert same_vectors(Alloy.from_pretrained(tmp_path / "moved/alloy"), alloy)


def test_alloys_nest(alloy, make_encoder, load, tmp_path, make_collection):
    alloy.save(tmp_path / "inner")
    inputs = [alloy, make_encoder(2)]
    outer = Alloy(inputs, tower_fuser(inputs), name="outer")
    outer.save(tmp_path / "outer")
    assert same_vectors(Alloy.from_pretrained(tmp_path / "outer"), outer)
    assert outer.encode_texts(CAPTIONS).embedding.shape == (3, outer.dim("text"))
    manifest = make_collection(tmp_path / "pictures", {"train": 3})
    stores = [
        extract(each, "image", manifest, tmp_path / "features" / str(k), workers=1, progress=False)
        for k, each in enumerate(inputs)
    ]
    embedded = outer.fuser.embed_rows(FeatureSet(stores), torch.arange(3))
    direct = outer.encode_images([manifest.absolute(item) for item in manifest]).embedding
    torch.testing.assert_close(embedded, direct, rtol=0, atol=2e-3)


def test_what_could_not_be_loaded_again_is_not_saved(alloy, make_encoder, tmp_path):
    inputs = [alloy, make_encoder(2)]
    outer = Alloy(inputs, tower_fuser(inputs))
    with pytest.raises(ConfigError, match="two colours isn't saved yet"):
        outer.save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_encoders_must_fit_the_fuser(encoders, make_encoder):
    fuser = tower_fuser(encoders)
    with pytest.raises(ConfigError, match="Colours 1 doesn't fit input 0"):
        Alloy(encoders[::-1], fuser)
    with pytest.raises(ConfigError, match="Colours 2 doesn't fit input 2"):
        Alloy([*encoders, make_encoder(2)], fuser)
    with pytest.raises(ConfigError, match="takes 2 encoders, got 1"):
        Alloy(encoders[:1], fuser)
    single = make_encoder(1)
    single.modalities = ("image",)
    with pytest.raises(ConfigError, match="Colours 1 encodes only images"):
        Alloy([encoders[0], single], fuser)


def test_an_encoder_with_other_weights_is_refused(alloy, load, tmp_path):
    alloy.save(tmp_path)
    load["weights"] = "c"
    with pytest.raises(CheckpointError, match=r"colours 0 image .*weights aaaaaaaaaaaa.*cccccccccccc"):
        Alloy.from_pretrained(tmp_path)


def change(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def other_weights(folder: Path) -> None:
    """The file of an alloy of the same make, and of the same size."""
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def described(folder: Path, **changes) -> None:
    fuser = json.loads((folder / "config.json").read_text())["fuser"]
    change(folder, fuser=fuser | changes)


def tower_config(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())["fuser"]["config"]
    described(folder, config=config | changes)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "doesn't exist.*modalloy fuse"),
        (lambda folder: (folder / "config.json").unlink(), "doesn't exist.*modalloy fuse"),
        (lambda folder: truncate(folder / "config.json"), "isn't JSON.*modalloy fuse"),
        (lambda folder: (folder / "config.json").write_text("[]"), "should have the format .*got None"),
        (lambda folder: (folder / "config.json").write_text("{}"), "should have the format .*got None"),
        (lambda folder: change(folder, format="modalloy-aligned-encoder-1"), "got 'modalloy-aligned"),
        (
            lambda folder: (folder / "config.json").write_text('{"format": "modalloy-alloy-1"}'),
            "doesn't describe .*encoders",
        ),
        (lambda folder: change(folder, encoders=[{"spec": "colours-0"}]), "doesn't describe .*fingerprints"),
        (lambda folder: change(folder, encoders=None), "doesn't describe"),
        (lambda folder: (folder / "model.safetensors").unlink(), "can't be read"),
        (lambda folder: truncate(folder / "model.safetensors"), "is damaged, or isn't the file"),
        (other_weights, "is damaged, or isn't the file"),
        (lambda folder: change(folder, fuser={}), "can't be loaded as an alloy"),
        (lambda folder: tower_config(folder, heads=3), "can't be loaded as an alloy.*size mismatch"),
        (lambda folder: tower_config(folder, legs=3), "can't be loaded as an alloy.*legs"),
        (lambda folder: tower_config(folder, heads=0), "can't be loaded as an alloy.*heads"),
        (lambda folder: described(folder, config=None), "can't be loaded as an alloy"),
        (lambda folder: described(folder, kind="scores"), "can't be loaded as an alloy"),
        (lambda folder: described(folder, kind="mixture"), "can't be loaded as an alloy.*members"),
        (lambda folder: described(folder, kind="mixture", members=[{}], inputs=[]), "can't be loaded as an alloy"),
        (lambda folder: described(folder, kind="mixture", members=[], inputs=[7]), "can't be loaded as an alloy"),
    ],
)
def test_a_folder_that_is_not_ours_is_refused(alloy, load, tmp_path, damage, message):
    alloy.save(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        Alloy.from_pretrained(tmp_path / "run")


def test_a_file_that_is_no_safetensors_is_refused_though_it_is_the_one_described(alloy, load, tmp_path):
    alloy.save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"pickle")
    change(tmp_path, weights_sha256=hashlib.sha256(b"pickle").hexdigest())
    with pytest.raises(CheckpointError, match="isn't a safetensors file"):
        Alloy.from_pretrained(tmp_path)


def test_a_moved_alloy_without_its_encoders_is_refused(make_encoder, load, tmp_path):
    encoders = [make_encoder(0), make_encoder(1)]
    for encoder in encoders:
        encoder.save(tmp_path / f"run/{encoder.number}")
    Alloy(encoders, tower_fuser(encoders)).save(tmp_path / "run/alloy")
    shutil.move(tmp_path / "run/alloy", tmp_path / "alone")
    with pytest.raises((CheckpointError, DataError), match=r"\.\./0"):
        Alloy.from_pretrained(tmp_path / "alone")
