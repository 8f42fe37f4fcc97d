"""Numbered pictures whose regions, and captions whose words, show one latent vector, so that they can be matched."""

import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image
from torch.nn.functional import normalize

from modalloy.align import AlignedEncoder, LocalConfig, Tokens, cross_layer_similarity
from modalloy.align.cross_layer import FOCAL
from modalloy.data import Item, Manifest
from modalloy.encoders import Encoded, Encoder, Fingerprint
from modalloy.encoders.mid import MidLevel
from modalloy.errors import ConfigError, FeatureError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.features import FeatureStore, extract
from modalloy.training import align_batches, trainer
from modalloy.training.align import fit_aligner
from modalloy.training.align_batches import PairBatch, TokenBatch
from modalloy.training.align_config import AlignConfig, LocalBranchConfig, UnfreezeConfig
from modalloy.training.align_fingerprint import align_fingerprint
from modalloy.training.align_module import Alignment

LATENT = 6
WIDTH = {("image", 0): 9, ("image", 1): 7, ("text", 0): 8, ("text", 1): 5}
CONFIG = AlignConfig(
    loss="m_hn", dim=8, epochs=4, batch_size=8, learning_rate=1e-2, dropout=0.1, local=LocalBranchConfig(dim=8)
)


class Shown(Encoder):
    """A summary, and two to four tokens that are the latent vector with some noise, spread over the width."""

    def __init__(self, modality: str, regions: int = 2) -> None:
        self.modalities = (modality,)
        self.regions = regions
        self.spec = self.name = f"shown-{modality}"

    def fingerprint(self, modality):
        return Fingerprint(f"{self.spec} {self.regions}", "1", "a" * 64, "b" * 64)

    def dim(self, modality):
        return WIDTH[modality, 0]

    width = dim

    def preprocess(self, modality, item):
        number = item.getpixel((0, 0))[0] if modality == "image" else item.split()[0].replace("a", "0")
        return torch.tensor(int(number))

    def mid_layer(self, modality):
        return "layer 1"

    def forward(self, modality, prepared):
        return self._shown(modality, prepared, 0)

    def forward_mid(self, modality, prepared):
        return self._shown(modality, prepared, 1)

    def _shown(self, modality, prepared, level):
        width = WIDTH[modality, level]
        spread = torch.randn(LATENT, width, generator=torch.Generator().manual_seed(width))
        items = []
        for number in map(int, prepared):
            latent = torch.randn(LATENT, generator=torch.Generator().manual_seed(number))
            own = torch.Generator().manual_seed(1000 * width + number)
            regions = self.regions + number % 3 if self.regions else 0
            noisy = latent + 0.3 * torch.randn(1 + regions, LATENT, generator=own)
            items.append(noisy @ spread)
        embedding = normalize(torch.stack([each[0] for each in items]), dim=-1)
        return Encoded(embedding, torch.cat(items), torch.tensor([len(each) for each in items]))


def collection(root: Path) -> Manifest:
    """Train images 0 and 1 are of one family; all have two captions."""
    root.mkdir(exist_ok=True)
    items = []
    for number in range(34):
        path = root / f"{number}.png"
        Image.new("RGB", (2, 2), (number, 0, 0)).save(path)
        captions = (f"{number} first", f"{number} second")
        split, family = "train" if number < 24 else "val", "pair" if number < 2 else None
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        items.append(Item(str(number), path.name, sha256, split, captions, family))
    return Manifest(root, tuple(items))


def stored(encoder: Encoder, manifest: Manifest, folder: Path) -> FeatureStore:
    name = encoder.spec.replace(":", "-")
    return extract(encoder, encoder.modalities[0], manifest, folder / name, workers=1, shard_size=16, progress=False)


def features(manifest: Manifest, folder: Path) -> dict:
    """The arguments of `fit_aligner` that are stores."""
    models = {modality: Shown(modality) for modality in ("image", "text")}
    stores = {f"{modality}_store": stored(model, manifest, folder) for modality, model in models.items()}
    return stores | {"mid": {each: stored(MidLevel(model), manifest, folder) for each, model in models.items()}}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Manifest:
    return collection(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def stores(manifest, tmp_path_factory) -> dict:
    return features(manifest, tmp_path_factory.mktemp("features"))


def fit_on_cpu(config, stores, manifest, folder) -> AlignedEncoder:
    return fit_aligner(config, manifest=manifest, folder=folder, accelerator="cpu", **stores)


def weights(encoder: AlignedEncoder) -> dict:
    return {name: weight.tolist() for name, weight in encoder._trained.state_dict().items()}


def logged(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_the_branch_learns_and_is_kept(manifest, stores, tmp_path):
    config = dataclasses.replace(CONFIG, loss="gcd", epochs=10)
    fit_on_cpu(config, stores, manifest, tmp_path)
    encoder = AlignedEncoder.from_pretrained(tmp_path)
    val = manifest.split("val")
    levels = {}
    for modality, ids in (("image", val.image_ids), ("text", val.caption_ids)):
        high, mid = stores[f"{modality}_store"], stores["mid"][modality]
        rows = high.rows_of(ids)
        levels[modality] = encoder.project_tokens(modality, {"high": high.tokens(rows), "mid": mid.tokens(rows)})
    score = cross_layer_similarity(levels["image"], levels["text"], encoder.local.config.attention)
    found = metrics(rank_queries(EmbeddingScores(score, torch.eye(20)), val.caption_image))
    last = logged(tmp_path)[-1]
    assert last["val_local_rsum"] == pytest.approx(found.rsum, abs=1e-3)
    assert last["val_local_text_to_image_r1"] == pytest.approx(found.text_to_image.recall_1, abs=1e-3)
    assert found.rsum > 500  # by chance about 330; the global heads, whose embeddings are noisier, get less
    assert last["val_rsum"] > 350
    assert encoder.local.config == LocalConfig(9, 7, 8, 5, dim=8)
    assert encoder.training["config"]["local"]["direction"] == "t2i"


def test_interrupted_it_goes_on_and_ends_the_same(manifest, stores, tmp_path, monkeypatch):
    whole = fit_on_cpu(CONFIG, stores, manifest, tmp_path / "whole")

    class Killed(Exception):
        pass

    def die(self, trainer, module, outputs, batch, index):
        if trainer.current_epoch == 2 and index == 1:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer._FitProgress, "on_train_batch_end", die)
        fit_on_cpu(CONFIG, stores, manifest, tmp_path / "killed")
    assert len(logged(tmp_path / "killed")) == 2
    assert weights(fit_on_cpu(CONFIG, stores, manifest, tmp_path / "killed")) == weights(whole)
    assert logged(tmp_path / "killed") == logged(tmp_path / "whole")


def pair_batch() -> PairBatch:
    torch.manual_seed(0)
    mask = torch.arange(4) < torch.tensor([4, 2, 3, 4, 3])[:, None]
    image, text = (
        {"high": Tokens(torch.randn(5, 4, high), mask), "mid": Tokens(torch.randn(5, 4, mid), mask)}
        for high, mid in ((9, 7), (8, 5))
    )
    return PairBatch(torch.randn(5, 9), torch.randn(5, 8), torch.tensor([0, 1, 0, 2, 3]), TokenBatch(image, text))


def step(config: AlignConfig, batch: PairBatch, monkeypatch) -> tuple[Alignment, float]:
    module = Alignment(config, 9, 8, 1, LocalConfig(9, 7, 8, 5, dim=8)).eval()
    monkeypatch.setattr(module, "log", lambda *args, **kwargs: None)
    return module, module.training_step(batch, 0).item()


@torch.no_grad()
def scores_of(module: Alignment, batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    score = module._local_scores(batch.tokens)
    return score, module.image_head(batch.image) @ module.text_head(batch.text).T


def test_the_loss_takes_the_hardest_negatives_of_the_local_scores(monkeypatch):
    batch = pair_batch()
    config = dataclasses.replace(CONFIG, info_nce_warmup=0.0, local=LocalBranchConfig(8, global_weight=0.5))
    module, loss = step(config, batch, monkeypatch)
    score, similarity = scores_of(module, batch)
    families, terms = batch.families.tolist(), {"local": 0.0, "global": 0.0}
    for row in range(5):
        others = [other for other in range(5) if families[other] != families[row]]
        text = max(others, key=lambda other: score[row, other])
        image = max(others, key=lambda other: score[other, row])
        for name, table in (("local", score), ("global", similarity)):
            for negative in (table[row, text], table[image, row]):
                terms[name] += max(0.0, float(negative + 0.2 - table[row, row])) / 5
    assert loss == pytest.approx(terms["local"] + 0.5 * terms["global"], abs=1e-5)


def test_warming_up_both_scores_are_compared_with_all_negatives(monkeypatch):
    batch = pair_batch()
    module, loss = step(CONFIG, batch, monkeypatch)
    score, similarity = scores_of(module, batch)
    families, expected = batch.families.tolist(), 0.0
    for table, weight in ((score / 3, 1.0), (similarity, 10 / 64)):
        for row in range(5):
            allowed = [other for other in range(5) if other == row or families[other] != families[row]]
            for line in (table[row], table[:, row]):
                logits = torch.stack([line[other] for other in allowed]) / 0.07
                expected += weight * float(logits.logsumexp(0) - line[row] / 0.07) / 10
    assert loss == pytest.approx(expected, abs=1e-4)


def test_terms_of_a_missing_level_are_left_out(manifest, stores, tmp_path):
    one_level = {**stores, "mid": None}
    config = dataclasses.replace(CONFIG, epochs=1)
    encoder = fit_on_cpu(config, one_level, manifest, tmp_path)
    assert encoder.local.config == LocalConfig(9, None, 8, None, dim=8)
    assert encoder.local.config.terms == FOCAL and encoder.mid == {}
    half = fit_on_cpu(config, {**stores, "mid": {"image": stores["mid"]["image"]}}, manifest, tmp_path)
    assert half.local.config == LocalConfig(9, 7, 8, None, dim=8)
    assert AlignedEncoder.from_pretrained(tmp_path).mid == half.mid


def test_without_a_branch_nothing_of_it_is_read_or_kept(manifest, stores, tmp_path):
    config = dataclasses.replace(CONFIG, local=LocalBranchConfig(), epochs=2)
    pair = {name: store for name, store in stores.items() if name != "mid"}
    encoder = fit_on_cpu(config, stores, manifest, tmp_path / "with")
    assert weights(encoder) == weights(fit_on_cpu(config, pair, manifest, tmp_path / "without"))
    assert (tmp_path / "with/config.json").read_bytes() == (tmp_path / "without/config.json").read_bytes()
    assert encoder.local is None and "local" not in (tmp_path / "with/config.json").read_text()
    assert "val_local" not in (tmp_path / "with/metrics.jsonl").read_text()


def test_the_fingerprint_knows_the_branch_and_its_levels(manifest, stores):
    pair = {"image": stores["image_store"], "text": stores["text_store"]}
    other = dataclasses.replace(CONFIG, local=LocalBranchConfig(dim=8, direction="i2t"))
    plain = dataclasses.replace(CONFIG, local=LocalBranchConfig())
    found = [
        align_fingerprint(CONFIG, pair, manifest, stores["mid"]),
        align_fingerprint(CONFIG, pair, manifest, {"image": stores["mid"]["image"]}),
        align_fingerprint(other, pair, manifest, stores["mid"]),
        align_fingerprint(plain, pair, manifest),
    ]
    assert len(set(found)) == 4


def test_tokens_are_read_batch_by_batch(manifest, stores, tmp_path, monkeypatch):
    asked = []
    read = FeatureStore.tokens
    monkeypatch.setattr(
        FeatureStore, "tokens", lambda store, rows, limit=None: asked.append(len(rows)) or read(store, rows, limit)
    )
    monkeypatch.setattr(align_batches, "_SAMPLE", 3)
    fit_on_cpu(dataclasses.replace(CONFIG, epochs=1), stores, manifest, tmp_path)
    # Whether there are regions in either split, the sample of validation, and 24 images in batches of 8.
    assert asked == [3, 3] + [3, 3, 6, 6] + [8] * 12


def test_rejected_items_are_left_out(tmp_path):
    manifest = collection(tmp_path / "pictures")
    for number in (3, 25):
        (tmp_path / f"pictures/{number}.png").write_bytes(b"no picture")
    stores = features(manifest, tmp_path / "features")
    config = dataclasses.replace(CONFIG, epochs=2)
    whole = fit_on_cpu(config, stores, manifest, tmp_path / "run")
    left = Manifest(manifest.root, tuple(item for item in manifest if item.id not in ("3", "25")))
    assert weights(whole) == weights(fit_on_cpu(config, stores, left, tmp_path / "left"))
    assert logged(tmp_path / "run") == logged(tmp_path / "left")


def test_without_a_validation_split_nothing_is_validated(manifest, stores, tmp_path):
    fit_on_cpu(dataclasses.replace(CONFIG, epochs=1), stores, manifest.split("train"), tmp_path)
    assert "val_" not in (tmp_path / "metrics.jsonl").read_text()


def test_unusable_input_is_refused(manifest, stores, tmp_path):
    with pytest.raises(ConfigError, match=r"image store holds text features \(mid:shown-text\)"):
        fit_on_cpu(CONFIG, {**stores, "mid": {"image": stores["mid"]["text"]}}, manifest, tmp_path)
    few = Manifest(manifest.root, manifest.items[:30])
    other = stored(MidLevel(Shown("image")), few, tmp_path / "few")
    with pytest.raises(FeatureError, match="don't hold the same image items"):
        fit_on_cpu(CONFIG, {**stores, "mid": {"image": other}}, manifest, tmp_path)
    bare = stored(Shown("image", regions=0), manifest, tmp_path / "bare")
    with pytest.raises(FeatureError, match="shown-image gives images a summary token alone"):
        fit_on_cpu(CONFIG, {**stores, "image_store": bare}, manifest, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 0}, r"local\.dim must be at least 1, got 0"),
        ({"direction": "i2t"}, r"give local\.dim, such as 256"),
        ({"global_weight": 0.0}, r"local\.global_weight must be above 0"),
        ({"global_weight": float("nan")}, r"local\.global_weight must be above 0"),
    ],
)
def test_impossible_configurations_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        LocalBranchConfig(**changes)


@pytest.mark.parametrize("field", ["direction", "focal"])
def test_unknown_choices_are_refused(field):
    config = LocalBranchConfig(dim=8)
    object.__setattr__(config, field, "both")  # past the type checks that only the tests have
    with pytest.raises((ConfigError, TypeCheckError), match="both"):
        config.__post_init__()


def test_hacan_s_own_has_the_published_branch():
    config = AlignConfig.hacan()
    assert config.local == LocalBranchConfig(dim=768, direction="t2i", focal="prob", global_weight=10 / 64)
    assert config.unfreeze == UnfreezeConfig(epoch=12, learning_rate=1e-4, precision="bf16", crop=0.08)
    assert (config.epochs, config.schedule, config.learning_rate) == (30, "step", 1e-4)
    assert (config.info_nce_warmup, config.loss, config.margin) == (0.0, "gcd", 0.2)
