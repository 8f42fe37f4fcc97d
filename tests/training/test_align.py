"""Colours as pictures, their values as captions: small real stores that heads can align."""

import dataclasses
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from trainable_toys import colours

from modalloy.align import AlignedEncoder
from modalloy.data import Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.encoders.base import sha256_of_settings
from modalloy.errors import CheckpointError, ConfigError, DataError, FeatureError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.features import FeatureStore, derive, extract
from modalloy.training.align import fit_aligner
from modalloy.training.align_config import AlignConfig, LocalBranchConfig, UnfreezeConfig
from modalloy.training.align_fingerprint import align_fingerprint

DIM = {"image": 24, "text": 20}
SPLITS = {"train": 40, "val": 8, "test": 2}
CONFIG = AlignConfig(
    loss="m_hn",
    info_nce_warmup=0.5,
    dim=16,
    epochs=4,
    batch_size=8,
    learning_rate=3e-3,
    dropout=0.1,
)


class Colours(Encoder):
    """Fixed random waves over a picture's colour, or over the three numbers in a caption."""

    def __init__(self, modality: str, weights: str = "a") -> None:
        self.modalities = (modality,)
        self.spec = self.name = f"colours-{modality}"
        self._weights = weights
        generator = torch.Generator().manual_seed(len(modality))
        self._map = torch.randn(3, DIM[modality], generator=generator)

    def fingerprint(self, modality):
        return Fingerprint(self.spec, "1", self._weights * 64, "b" * 64)

    def dim(self, modality):
        return DIM[modality]

    width = dim

    def preprocess(self, modality, item):
        colour = item.getpixel((0, 0)) if modality == "image" else [int(word) for word in item.split()[:3]]
        return torch.tensor(colour) / 127.5 - 1

    def forward(self, modality, prepared):
        summary = (torch.stack(list(prepared)) @ self._map).cos()
        return Encoded(nn.functional.normalize(summary, dim=-1), summary, torch.ones(len(summary), dtype=torch.long))


def features(manifest: Manifest, folder: Path, weights: str = "a") -> tuple[FeatureStore, FeatureStore]:
    return tuple(
        extract(Colours(m, weights), m, manifest, folder / m, workers=1, shard_size=16, progress=False)
        for m in ("image", "text")
    )


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return colours(tmp_path_factory.mktemp("pictures"), SPLITS)


@pytest.fixture(scope="module")
def stores(manifest, tmp_path_factory) -> tuple[FeatureStore, FeatureStore]:
    return features(manifest, tmp_path_factory.mktemp("features"))


def weights(encoder: AlignedEncoder) -> list[float]:
    return torch.cat([parameter.flatten() for parameter in encoder.heads.parameters()]).tolist()


def fit_on_cpu(config, stores, manifest, folder, **options) -> AlignedEncoder:
    return fit_aligner(config, *stores, manifest, folder, accelerator="cpu", **options)


@pytest.mark.parametrize("loss", ["gcd", "f_hn", "m_hn", "info_nce"])
def test_alignment_learns_to_retrieve(manifest, stores, tmp_path, loss):
    config = dataclasses.replace(CONFIG, loss=loss, epochs=30, learning_rate=1e-2)
    encoder = fit_on_cpu(config, stores, manifest, tmp_path)
    val = manifest.split("val")
    embeddings = []
    for modality, store, ids in zip(DIM, stores, (val.image_ids, val.caption_ids), strict=True):
        backbone = store.embeddings(store.rows_of(ids))
        encoded = Encoded(backbone, backbone, torch.ones(len(ids), dtype=torch.long))
        embeddings.append(encoder.project(modality, encoded).embedding)
    rsum = metrics(rank_queries(EmbeddingScores(*embeddings), val.caption_image)).rsum
    assert rsum > 430  # by chance about 350
    last = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1]
    assert f'"val_rsum": {rsum:.1f}'[:-2] in last


def test_the_result_is_saved_and_then_loaded_instead_of_trained(manifest, stores, tmp_path):
    encoder = fit_on_cpu(CONFIG, stores, manifest, tmp_path, name="Colours")
    assert encoder.name == "Colours"
    assert encoder.spec == f"hacan:{tmp_path}"
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = fit_on_cpu(CONFIG, stores, manifest, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == files
    assert weights(again) == weights(encoder)
    assert again.name == "colours-image + colours-text"
    assert again.training["config"] == AlignedEncoder.from_pretrained(tmp_path).training["config"]
    assert again.fingerprint("image") == encoder.fingerprint("image")


def test_another_configuration_or_other_features_are_trained_anew(manifest, stores, tmp_path, caplog):
    first = weights(fit_on_cpu(CONFIG, stores, manifest, tmp_path / "run"))
    other_seed = dataclasses.replace(CONFIG, seed=1)
    second = weights(fit_on_cpu(other_seed, stores, manifest, tmp_path / "run"))
    assert second != first
    assert weights(fit_on_cpu(other_seed, stores, manifest, tmp_path / "fresh")) == second
    others = features(manifest, tmp_path / "features", weights="c")
    encoder = fit_on_cpu(other_seed, others, manifest, tmp_path / "run")
    assert encoder.backbones["image"].fingerprint == others[0].fingerprint
    assert sum("which this one replaces" in each.getMessage() for each in caplog.records) == 2


def test_killed_trainings_go_on_and_end_the_same(manifest, stores, tmp_path):
    """A child process is killed by SIGKILL after its first checkpoint; the next call finishes its work."""
    whole = fit_on_cpu(CONFIG, stores, manifest, tmp_path / "whole")
    manifest.save(tmp_path / "manifest.jsonl")
    folder = tmp_path / "killed"
    settings = {name: value for name, value in dataclasses.asdict(CONFIG).items() if name not in ("local", "unfreeze")}
    code = f"""
import os, signal
from modalloy.data import Manifest
from modalloy.features import FeatureStore
from modalloy.training import trainer
from modalloy.training.align import AlignConfig, fit_aligner

def on_train_batch_end(self, trainer, module, outputs, batch, index):
    if trainer.current_epoch == 2 and index == 1:
        os.kill(os.getpid(), signal.SIGKILL)

trainer._FitProgress.on_train_batch_end = on_train_batch_end
stores = [FeatureStore.open(folder) for folder in {[str(store.folder) for store in stores]!r}]
fit_aligner(
    AlignConfig(**{settings!r}),
    *stores,
    Manifest.load({str(tmp_path / "manifest.jsonl")!r}),
    {str(folder)!r},
    accelerator="cpu",
)
"""
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2
    assert not (folder / "config.json").exists()
    resumed = fit_on_cpu(CONFIG, stores, manifest, folder)
    assert weights(resumed) == weights(whole)
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "whole/metrics.jsonl").read_text()


def test_heads_are_centered_on_the_training_split(manifest, stores, tmp_path):
    config = AlignConfig(dim=4, epochs=1)
    centered = fit_on_cpu(config, stores, manifest, tmp_path / "centered")
    plain = fit_on_cpu(dataclasses.replace(config, center=False), stores, manifest, tmp_path / "plain")
    train = manifest.split("train")
    for modality, store, ids in zip(("image", "text"), stores, (train.image_ids, train.caption_ids), strict=True):
        mean = store.embeddings(store.rows_of(ids)).mean(dim=0)
        torch.testing.assert_close(centered.heads[modality].center, mean)
        assert not plain.heads[modality].center.any()


def test_rejected_items_are_left_out(tmp_path):
    (tmp_path / "pictures").mkdir()
    manifest = colours(tmp_path / "pictures", SPLITS)
    for number in (3, 41):  # one of train, one of val
        (tmp_path / f"pictures/{number}.png").write_bytes(b"no picture")
    stores = features(manifest, tmp_path / "features")
    assert [reject["id"] for reject in stores[0].rejects()] == ["3", "41"]
    encoder = fit_on_cpu(CONFIG, stores, manifest, tmp_path / "run")
    assert all(torch.tensor(weights(encoder)).isfinite())
    without = Manifest(manifest.root, tuple(item for item in manifest if item.id not in ("3", "41")))
    assert weights(encoder) == weights(fit_on_cpu(CONFIG, stores, without, tmp_path / "without"))


def test_without_a_validation_split_nothing_is_validated(tmp_path):
    (tmp_path / "pictures").mkdir()
    manifest = colours(tmp_path / "pictures", {"train": 12})
    fit_on_cpu(CONFIG, features(manifest, tmp_path / "features"), manifest, tmp_path / "run")
    assert "val_" not in (tmp_path / "run/metrics.jsonl").read_text()


def test_stored_features_can_be_derived(manifest, stores, tmp_path):
    encoder = fit_on_cpu(CONFIG, stores, manifest, tmp_path / "run")
    derived = derive(stores[1], encoder, tmp_path / "derived", partial(encoder.project, "text"))
    assert derived.fingerprint == encoder.fingerprint("text")
    assert derived.embeddings().norm(dim=-1).allclose(torch.ones(len(derived)))
    assert torch.equal(derived.tokens()[0], stores[1].tokens()[0])


def test_unusable_input_is_refused(manifest, stores, tmp_path):
    with pytest.raises(ConfigError, match=r"image store holds text features \(colours-text\)"):
        fit_on_cpu(CONFIG, (stores[1], stores[0]), manifest, tmp_path)
    with pytest.raises(DataError, match="at least 2"):
        fit_on_cpu(CONFIG, stores, manifest.split("val"), tmp_path)
    stranger = dataclasses.replace(manifest.items[0], id="stranger")
    with pytest.raises(FeatureError, match="stranger"):
        fit_on_cpu(CONFIG, stores, Manifest(manifest.root, (*manifest.items, stranger)), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="should have the format"):
        fit_on_cpu(CONFIG, stores, manifest, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 1}, "batch_size must be at least 2"),
        ({"seed": -1}, "seed"),
        ({"margin": -0.1}, "margin"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0"),
        ({"temperature": 0.0}, "temperature"),
        ({"dropout": 1.0}, "dropout"),
        ({"info_nce_warmup": 1.5}, "info_nce_warmup"),
        ({"image_widths": (8, 3)}, "image_widths must end in dim = 16"),
        ({"text_widths": ()}, "text_widths must end"),
        ({"text_widths": (0, 16)}, "widths of at least 1"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(CONFIG, **changes)


@pytest.mark.parametrize(("field", "value"), [("loss", "triplet"), ("schedule", "linear"), ("split", "val")])
def test_unknown_choices_are_refused(field, value):
    config = dataclasses.replace(CONFIG)
    object.__setattr__(config, field, value)  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match=f"{field} must be one of .*, got '{value}'"):
        config.__post_init__()


def test_it_trains_on_the_split_asked_for(manifest, stores, tmp_path):
    """The same pairs give the same heads, whatever their split is called; the other split's pairs give others."""

    def renamed(first: str, second: str) -> Manifest:
        names = {True: first, False: second}
        return Manifest(
            manifest.root,
            tuple(
                dataclasses.replace(item, split=names[row < 20]) if item.split == "train" else item
                for row, item in enumerate(manifest)
            ),
        )

    foreign = dataclasses.replace(CONFIG, epochs=1, split="inputs")
    shared = dataclasses.replace(foreign, split="train")
    mine, other = renamed("inputs", "train"), renamed("train", "inputs")
    expected = weights(fit_on_cpu(shared, stores, other, tmp_path / "train"))
    assert weights(fit_on_cpu(foreign, stores, mine, tmp_path / "inputs")) == expected
    assert weights(fit_on_cpu(shared, stores, mine, tmp_path / "inputs")) != expected
    with pytest.raises(DataError, match="at least 2"):
        fit_on_cpu(foreign, stores, manifest, tmp_path / "none")


def test_an_alignment_on_train_has_the_fingerprint_that_it_had_before_there_was_a_choice(manifest, stores):
    config = dataclasses.asdict(CONFIG)
    del config["split"], config["local"], config["unfreeze"]
    known = {
        "recipe": 1,
        "config": config,
        "features": {store.modality: store.fingerprint.digest for store in stores},
        "rejects": {store.modality: [] for store in stores},
        "collection": manifest.fingerprint,
        "splits": [item.split for item in manifest],
        "families": manifest.families.tolist(),
    }
    pair = dict(zip(DIM, stores, strict=True))
    assert align_fingerprint(CONFIG, pair, manifest) == sha256_of_settings(known)
    assert align_fingerprint(dataclasses.replace(CONFIG, split="inputs"), pair, manifest) != sha256_of_settings(known)


def test_heads_are_as_configured():
    config = dataclasses.replace(CONFIG, text_widths=(9, 16), dropout=0.4, last_activation=True)
    assert config.head("image", 10).widths == (16,)
    head = config.head("text", 10)
    assert (head.input_width, head.widths, head.dropout, head.last_activation) == (10, (9, 16), 0.4, True)


def test_hacans_own_settings(manifest, stores, tmp_path):
    config = AlignConfig.hacan(epochs=1, local=LocalBranchConfig(), unfreeze=UnfreezeConfig())
    assert config == AlignConfig.hacan(**vars(config))
    assert fit_on_cpu(config, stores, manifest, tmp_path).dim("image") == 768
