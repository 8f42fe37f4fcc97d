"""Backbones of a few parameters, trained from pictures of one colour and captions with its numbers."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from trainable_toys import TrainableToy, colours, register

from modalloy.align import AlignedEncoder, LocalConfig, cross_layer_similarity
from modalloy.data import Manifest
from modalloy.encoders import Fingerprint, load_encoder
from modalloy.encoders.mid import MidLevel
from modalloy.errors import CheckpointError, ConfigError, DataError, FeatureError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.features import extract
from modalloy.training import align, trainer
from modalloy.training.align import fit_aligner
from modalloy.training.align_config import AlignConfig, LocalBranchConfig, UnfreezeConfig
from modalloy.training.align_fingerprint import align_fingerprint, align_settings
from modalloy.training.align_module import Alignment

UNFREEZE = UnfreezeConfig(epoch=3, learning_rate=1e-2, workers=0)
CONFIG = AlignConfig(
    loss="m_hn",
    info_nce_warmup=0.5,
    dim=8,
    epochs=4,
    batch_size=8,
    learning_rate=1e-2,
    dropout=0.1,
    local=LocalBranchConfig(dim=8),
    unfreeze=UNFREEZE,
)


@pytest.fixture(autouse=True)
def _toys(monkeypatch):
    register(monkeypatch)


def changed(config: AlignConfig = CONFIG, **changes) -> AlignConfig:
    return dataclasses.replace(config, unfreeze=dataclasses.replace(config.unfreeze, **changes))


def stored(manifest: Manifest, folder: Path) -> dict:
    """The arguments of `fit_aligner` that are stores."""
    models = {modality: TrainableToy(modality) for modality in ("image", "text")}

    def store(encoder, modality):
        path = folder / encoder.spec.replace(":", "-")
        return extract(encoder, modality, manifest, path, workers=1, shard_size=16, progress=False)

    stores = {f"{modality}_store": store(model, modality) for modality, model in models.items()}
    return stores | {"mid": {modality: store(MidLevel(model), modality) for modality, model in models.items()}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return colours(tmp_path_factory.mktemp("pictures"), {"train": 25, "val": 8})


@pytest.fixture(scope="module")
def stores(manifest, tmp_path_factory) -> dict:
    return stored(manifest, tmp_path_factory.mktemp("features"))


def backbones() -> dict:
    return {modality: load_encoder(f"toy:{modality}") for modality in ("image", "text")}


def fit_on_cpu(config, stores, manifest, folder, encoders=None) -> AlignedEncoder:
    encoders = encoders or backbones()
    return fit_aligner(config, manifest=manifest, folder=folder, encoders=encoders, accelerator="cpu", **stores)


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(encoder: AlignedEncoder) -> dict:
    """Of the heads, the local branch and both backbones."""
    modules = {"own": encoder._trained} | {each: encoder.backbone(each).network(each) for each in ("image", "text")}
    return {
        (part, name): weight.tolist()
        for part, module in modules.items()
        for name, weight in module.state_dict().items()
    }


@pytest.fixture(scope="module")
def whole(manifest, stores, tmp_path_factory) -> Path:
    """The folder of a training that wasn't interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        fit_on_cpu(CONFIG, stores, manifest, folder)
    return folder


def test_the_backbones_learn_and_are_saved_with_the_rest(manifest, stores, tmp_path):
    config = dataclasses.replace(changed(learning_rate=3e-2), epochs=12, loss="gcd")
    fit_on_cpu(config, stores, manifest, tmp_path)
    fit_on_cpu(dataclasses.replace(config, unfreeze=UnfreezeConfig()), stores, manifest, tmp_path / "fixed")
    lines = logged(tmp_path)
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    fixed = logged(tmp_path / "fixed")[-1]
    assert lines[-1]["loss"] < 0.9 * fixed["loss"]
    assert lines[-1]["val_local_rsum"] > fixed["val_local_rsum"] + 50
    encoder = AlignedEncoder.from_pretrained(tmp_path)
    assert encoder.backbone("image").spec == f"tuned:{tmp_path / 'image'}"
    val = manifest.split("val")
    levels, embeddings = {}, []
    items = ("image", [manifest.root / item.path for item in val]), ("text", val.captions)
    for modality, each in items:
        encode = f"encode_{modality}s"
        assert not torch.equal(encoder.backbone(modality).network(modality).high.weight, _fresh(modality).high.weight)
        embeddings.append(getattr(encoder, encode)(each).embedding)
        found = {level: getattr(encoder.backbone(modality, level), encode)(each) for level in ("high", "mid")}
        levels[modality] = encoder.project_tokens(
            modality, {level: (encoded.tokens, encoded.lengths) for level, encoded in found.items()}
        )
    score = cross_layer_similarity(levels["image"], levels["text"], encoder.local.config.attention)
    for name, scores in (
        ("val", EmbeddingScores(*embeddings)),
        ("val_local", EmbeddingScores(score, torch.eye(len(val.captions)))),
    ):
        expected = metrics(rank_queries(scores, val.caption_image))
        assert lines[-1][f"{name}_rsum"] == pytest.approx(expected.rsum, abs=1e-3)
        assert lines[-1][f"{name}_text_to_image_r1"] == pytest.approx(expected.text_to_image.recall_1, abs=1e-3)


def _fresh(modality):
    return TrainableToy(modality).network(modality)


def test_the_frozen_part_is_that_of_a_frozen_training(manifest, stores, whole, tmp_path):
    fit_on_cpu(dataclasses.replace(CONFIG, unfreeze=UnfreezeConfig()), stores, manifest, tmp_path)
    assert logged(whole)[:2] == logged(whole / "frozen") == logged(tmp_path)[:2]
    assert [line["epoch"] for line in logged(whole)] == [1, 2, 3, 4]
    assert logged(whole)[2]["loss"] != logged(tmp_path)[2]["loss"]


def test_a_finished_one_is_loaded(manifest, stores, whole, monkeypatch):
    monkeypatch.setattr(align, "fit", None)
    # Who reads pictures, and whether activations are kept, changes no result.
    again = fit_on_cpu(changed(workers=3, recompute=True), stores, manifest, whole)
    assert weights(again) == weights(AlignedEncoder.from_pretrained(whole))


@pytest.mark.parametrize("killed_in", [1, 3])
def test_interrupted_it_goes_on_and_ends_the_same(manifest, stores, whole, tmp_path, monkeypatch, killed_in):
    class Killed(Exception):
        pass

    def die(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == killed_in and index == 1:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer._FitProgress, "on_train_batch_end", die)
        fit_on_cpu(CONFIG, stores, manifest, tmp_path)
    assert len(logged(tmp_path / "frozen" if killed_in == 1 else tmp_path)) == killed_in
    assert not (tmp_path / "config.json").exists()
    assert weights(fit_on_cpu(CONFIG, stores, manifest, tmp_path)) == weights(AlignedEncoder.from_pretrained(whole))
    assert logged(tmp_path) == logged(whole)


@pytest.mark.parametrize("changes", [{"workers": 2}, {"recompute": True}], ids=["workers", "recompute"])
def test_what_decides_nothing_changes_nothing(manifest, stores, whole, tmp_path, changes):
    encoders = backbones()
    encoder = fit_on_cpu(changed(**changes), stores, manifest, tmp_path, encoders)
    assert weights(encoder) == weights(AlignedEncoder.from_pretrained(whole))
    assert logged(tmp_path) == logged(whole)
    network = encoders["image"].network("image")
    assert (network.calls > len(network.modes)) == bool(changes.get("recompute"))


def test_in_bfloat16_it_comes_to_nearly_the_same(manifest, stores, whole, tmp_path, monkeypatch):
    loss, in_bf16 = Alignment._loss, []

    def note(self, score, image, text, same):
        in_bf16.append(torch.is_autocast_enabled("cpu") or {score.dtype, image.dtype, text.dtype} != {torch.float32})
        return loss(self, score, image, text, same)

    monkeypatch.setattr(Alignment, "_loss", note)
    fit_on_cpu(changed(precision="bf16"), stores, manifest, tmp_path)
    assert in_bf16 and not any(in_bf16)
    exact, rough = logged(whole), logged(tmp_path)
    assert rough[:2] == exact[:2]
    assert rough[3]["loss"] != exact[3]["loss"]
    assert rough[3]["loss"] == pytest.approx(exact[3]["loss"], rel=0.1)


def test_networks_drop_out_in_training_alone(manifest, stores, tmp_path):
    encoders = backbones()
    fit_on_cpu(dataclasses.replace(changed(epoch=1), epochs=2), stores, manifest, tmp_path, encoders)
    # 25 images in batches of 8, and 8 to validate on at once: the captions, too.
    for modality, network in ((each, encoder.network(each)) for each, encoder in encoders.items()):
        assert network.modes == ([True] * 3 + [False]) * 2, modality
        assert not network.training and not any(each.requires_grad for each in network.parameters())
    assert not (tmp_path / "frozen").exists()


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_schedule_goes_on_where_it_was(manifest, stores, tmp_path, monkeypatch, schedule):
    rates = []

    def note(self, trainer, module, outputs, batch, index):
        rates.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    monkeypatch.setattr(trainer._FitProgress, "on_train_batch_end", note)
    monkeypatch.setattr("modalloy.training.align_module._STEP_DECAY_EPOCHS", 3)
    config = dataclasses.replace(CONFIG, schedule=schedule, unfreeze=UnfreezeConfig())
    fit_on_cpu(config, stores, manifest, tmp_path / "frozen")
    frozen = [first for first, _ in rates]
    rates.clear()
    fit_on_cpu(dataclasses.replace(config, unfreeze=changed(learning_rate=1e-3).unfreeze), stores, manifest, tmp_path)
    assert [first for first, *_ in rates] == pytest.approx(frozen)
    assert len(rates[0]) == 2 and len(rates[-1]) == 4
    for heads, _, backbone, biases in rates[6:]:
        assert (backbone, biases) == pytest.approx((heads / 10, heads / 10))


def test_the_warm_up_is_a_share_of_all_epochs(manifest, stores, tmp_path, monkeypatch):
    global_loss, seen = Alignment._global_loss, set()

    def note(self, *pairs):
        seen.add((self.current_epoch, self._warming_up()))
        return global_loss(self, *pairs)

    monkeypatch.setattr(Alignment, "_global_loss", note)
    config = dataclasses.replace(CONFIG, info_nce_warmup=0.75, local=LocalBranchConfig())
    fit_on_cpu(config, stores, manifest, tmp_path)
    assert seen == {(0, True), (1, True), (2, True), (3, False)}


def test_another_backbone_rate_goes_on_from_the_same_frozen_part(manifest, stores, tmp_path):
    first = weights(fit_on_cpu(CONFIG, stores, manifest, tmp_path))
    frozen = (tmp_path / "frozen/metrics.jsonl").stat().st_mtime_ns
    second = weights(fit_on_cpu(changed(learning_rate=1e-3), stores, manifest, tmp_path))
    assert (tmp_path / "frozen/metrics.jsonl").stat().st_mtime_ns == frozen
    assert second != first
    assert second == weights(fit_on_cpu(changed(learning_rate=1e-3), stores, manifest, tmp_path / "fresh"))


def test_a_picture_that_breaks_is_left_out_and_named_once(tmp_path, caplog):
    manifest = colours(tmp_path / "pictures", {"train": 10, "val": 5})
    stores = stored(manifest, tmp_path / "features")
    for number in (3, 12):
        (tmp_path / f"pictures/{number}.png").write_bytes(b"no picture")
    config = dataclasses.replace(changed(epoch=1), epochs=3, batch_size=5)
    with caplog.at_level(logging.WARNING, "modalloy"):
        encoder = fit_on_cpu(config, stores, manifest, tmp_path / "run")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2 and all("isn't a picture" in each for each in told)
    assert {name for name in ("3.png", "12.png") for each in told if f"/{name} " in each} == {"3.png", "12.png"}
    left = Manifest(manifest.root, tuple(item for item in manifest if item.id != "12"))
    val = left.split("val")
    scores = EmbeddingScores(
        encoder.encode_images([manifest.root / item.path for item in val]).embedding,
        encoder.encode_texts(val.captions).embedding,
    )
    expected = metrics(rank_queries(scores, val.caption_image)).rsum
    assert logged(tmp_path / "run")[-1]["val_rsum"] == pytest.approx(expected, abs=1e-3)


def test_a_batch_of_one_pair_takes_no_step(tmp_path, monkeypatch):
    manifest = colours(tmp_path / "pictures", {"train": 4})
    stores = stored(manifest, tmp_path / "features")
    for number in (0, 1, 2):
        (tmp_path / f"pictures/{number}.png").write_bytes(b"no picture")
    taken = []

    def note(self, trainer, module, outputs, batch, index):
        taken.append([weight.tolist() for weight in module.parameters()])

    monkeypatch.setattr(trainer._FitProgress, "on_train_batch_end", note)
    config = dataclasses.replace(changed(epoch=1), epochs=3, batch_size=4, weight_decay=0.1)
    encoder = fit_on_cpu(config, stores, manifest, tmp_path / "run")
    assert len(taken) == 3 and taken[0] == taken[1] == taken[2]
    assert weights(encoder)["image", "high.weight"] == _fresh("image").high.weight.tolist()
    assert logged(tmp_path / "run") == [{"epoch": 1}, {"epoch": 2}, {"epoch": 3}]


def test_pictures_that_are_all_gone_are_told_instead_of_training_on_nothing(tmp_path):
    manifest = colours(tmp_path / "pictures", {"train": 4, "val": 2})
    stores = stored(manifest, tmp_path / "features")
    for path in (tmp_path / "pictures").iterdir():
        path.unlink()
    config = dataclasses.replace(changed(epoch=2), epochs=2, batch_size=4)
    with pytest.raises(DataError, match=r"no picture to train on could be read, such as: .*\.png"):
        fit_on_cpu(config, stores, manifest, tmp_path / "run")
    assert not (tmp_path / "run/config.json").exists() and not (tmp_path / "run/metrics.jsonl").exists()


def test_rejected_items_are_left_out(tmp_path):
    manifest = colours(tmp_path / "pictures", {"train": 10, "val": 5})
    for number in (3, 12):
        (tmp_path / f"pictures/{number}.png").write_bytes(b"no picture")
    stores = stored(manifest, tmp_path / "features")
    config = dataclasses.replace(changed(epoch=2, crop=1.0, flip=False), epochs=2)
    run = fit_on_cpu(config, stores, manifest, tmp_path / "run")
    left = Manifest(manifest.root, tuple(item for item in manifest if item.id not in ("3", "12")))
    assert weights(run) == weights(fit_on_cpu(config, stores, left, tmp_path / "left"))
    assert logged(tmp_path / "run") == logged(tmp_path / "left")


def test_the_levels_there_are_trained_and_told(manifest, stores, tmp_path, caplog):
    config = dataclasses.replace(changed(epoch=1), epochs=1)
    with caplog.at_level(logging.INFO, "modalloy.training"):
        one = fit_on_cpu(config, {**stores, "mid": {"image": stores["mid"]["image"]}}, manifest, tmp_path / "one")
        none = fit_on_cpu(dataclasses.replace(config, local=LocalBranchConfig()), stores, manifest, tmp_path / "none")
    assert one.local.config == LocalConfig(7, 5, 7, None, dim=8) and list(one.mid) == ["image"]
    assert none.local is None and "val_local_rsum" not in logged(tmp_path / "none")[0]
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "aligning toy:image + toy:text: the global loss and the local terms (image level, text level) "
        "focal (high, high), (mid, high)",
        "aligning toy:image + toy:text: the global loss",
    ]


def test_the_fingerprint_knows_what_decides(manifest, stores):
    def found(config):
        pair = {"image": stores["image_store"], "text": stores["text_store"]}
        return align_fingerprint(config, pair, manifest, stores["mid"])

    frozen = dataclasses.replace(CONFIG, unfreeze=UnfreezeConfig())
    others = [{"epoch": 2}, {"learning_rate": 1e-3}, {"precision": "bf16"}, {"crop": 0.4}, {"flip": False}]
    different = [found(config) for config in (CONFIG, frozen, *(changed(**each) for each in others))]
    assert len(set(different)) == len(different)
    assert found(CONFIG) == found(changed(workers=3, recompute=True))
    assert "unfreeze" not in align_settings(frozen) and align_settings(CONFIG)["unfreeze"]["epoch"] == 3


def test_backbones_that_cannot_be_trained_are_refused_before_any_work(manifest, stores, tmp_path, monkeypatch):
    monkeypatch.setattr(align, "fit", None)
    with pytest.raises(ConfigError, match=r"that of images \(toy:image\) isn't given"):
        fit_aligner(CONFIG, manifest=manifest, folder=tmp_path, **stores)
    other = backbones()
    other["text"].fingerprint = lambda modality: Fingerprint("toy:text", "2", "a" * 64, "b" * 64)
    with pytest.raises(ConfigError, match="text backbone to train, toy:text, isn't the one"):
        fit_on_cpu(CONFIG, stores, manifest, tmp_path, other)
    both = backbones()
    both["text"].modalities = ("image", "text")
    with pytest.raises(ConfigError, match="toy:text can't be trained"):
        fit_on_cpu(CONFIG, stores, manifest, tmp_path, both)
    fixed = backbones()
    fixed["text"].network = lambda modality: None
    with pytest.raises(ConfigError, match=r"toy:text can't be trained; leave out unfreeze\.epoch"):
        fit_on_cpu(CONFIG, stores, manifest, tmp_path, fixed)
    assert not list(tmp_path.iterdir())


def test_a_killed_reader_is_explained(manifest, stores, tmp_path, monkeypatch):
    def killed(self, row):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("modalloy.features.sources.Images.load", killed)
    config = dataclasses.replace(changed(epoch=1, workers=1), epochs=1)
    with pytest.raises(FeatureError, match=r"fewer workers \(unfreeze\.workers\)"):
        fit_on_cpu(config, stores, manifest, tmp_path)


def test_a_cut_checkpoint_is_named(manifest, stores, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run/config.json").unlink()
    (path,) = (tmp_path / "run/checkpoints").iterdir()
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"{path} can't be read as a training checkpoint"):
        fit_on_cpu(CONFIG, stores, manifest, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": 0}, r"unfreeze\.epoch must be at least 1"),
        ({"epoch": 5}, r"unfreeze\.epoch must be at most epochs = 4, got 5"),
        ({"learning_rate": 0.0}, r"unfreeze\.learning_rate must be above 0"),
        ({"crop": 0.0}, r"unfreeze\.crop must lie in \(0, 1\]"),
        ({"crop": float("nan")}, r"unfreeze\.crop must lie in \(0, 1\]"),
        ({"workers": -1}, r"unfreeze\.workers must be at least 0"),
        ({"epoch": None}, r"give unfreeze\.epoch"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(**changes)


def test_an_unknown_precision_is_refused():
    config = UnfreezeConfig(epoch=1)
    object.__setattr__(config, "precision", "fp16")  # past the type checks that only the tests have
    with pytest.raises(ConfigError, match="precision must be one of fp32, bf16, got 'fp16'"):
        config.__post_init__()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_it_comes_to_nearly_the_same(manifest, stores, whole, tmp_path, precision):
    encoders = backbones()
    config = changed(precision=precision, recompute=True, workers=1)
    fit_aligner(config, manifest=manifest, folder=tmp_path, encoders=encoders, accelerator="gpu", **stores)
    assert logged(tmp_path)[3]["loss"] == pytest.approx(logged(whole)[3]["loss"], rel=0.2)
    assert all(each.device.type == "cpu" for each in encoders.values())
