import json
from dataclasses import replace

import pytest
import torch

from modalloy import AlignedEncoder, Collection, align_backbones
from modalloy.align import cross_layer_similarity
from modalloy.encoders import Encoded, load_encoder
from modalloy.encoders.base import MODALITIES
from modalloy.errors import ConfigError
from modalloy.training.align_config import AlignConfig, LocalBranchConfig, UnfreezeConfig
from modalloy.workflow.stages import evaluate_stages
from modalloy.workflow.stages_config import StagesConfig, stages_of

TINY = AlignConfig(epochs=1, dim=8, batch_size=8)


@pytest.fixture
def collection(run_copy, tiny_manifest):
    return Collection(tiny_manifest, run_copy / "features")


def test_the_result_encodes_new_items_and_is_saved(collection, tmp_path):
    encoder = align_backbones("vit-s14-focus@56", "minilm", collection, tmp_path / "made", TINY)
    assert encoder.name == "vit-s14-focus@56 + minilm"
    loaded = AlignedEncoder.from_pretrained(tmp_path / "made")
    texts = ["a red telephone", "two dogs"]
    vectors = encoder.encode_texts(texts).embedding
    assert tuple(vectors.shape) == (2, 8) and torch.equal(loaded.encode_texts(texts).embedding, vectors)


def test_a_finished_one_is_loaded_under_the_name_asked_for(collection, run_copy, monkeypatch):
    from modalloy.workflow.run import Run

    config = Run.open(run_copy).config.inputs[0]
    monkeypatch.setattr("modalloy.training.align.fit", None)
    encoder = align_backbones(
        "efficientnet-lite0@64", "minilm", collection, run_copy / "inputs" / "1", config.align, name="another name"
    )
    assert encoder.name == "another name" and encoder.dim("image") == config.align.dim


@pytest.mark.parametrize(("image", "text"), [("minilm", "subwords"), ("efficientnet-lite0@64", "vit-s14-focus@56")])
def test_backbones_of_the_wrong_modality_are_refused(collection, tmp_path, image, text):
    with pytest.raises(ConfigError, match=r"encodes (image|text), not|The (image|text) store"):
        align_backbones(image, text, collection, tmp_path / "made", TINY)
    assert not (tmp_path / "made").exists()


def test_an_unknown_backbone_is_refused_before_the_work(collection, tmp_path):
    with pytest.raises(ConfigError, match="Did you mean 'minilm'"):
        align_backbones("efficientnet-lite0@64", "minilmm", collection, tmp_path / "made", TINY)


def test_a_backbone_that_cannot_be_trained_is_refused_before_the_work(tiny_manifest, tmp_path):
    config = replace(TINY, unfreeze=UnfreezeConfig(epoch=1))
    collection = Collection(tiny_manifest, tmp_path / "features")
    with pytest.raises(ConfigError, match=r"subwords can't be trained; leave out unfreeze\.epoch"):
        align_backbones("efficientnet-lite0@64", "subwords", collection, tmp_path / "made", config)
    assert not list(tmp_path.iterdir())


def test_a_local_branch_reads_the_mid_levels_there_are(collection, run_copy, tmp_path):
    config = replace(TINY, local=LocalBranchConfig(dim=8))
    made = align_backbones("efficientnet-lite0@64", "subwords", collection, tmp_path / "made", config)
    assert list(made.mid) == ["image"] and len(made.local.config.terms) == 2
    encoder = AlignedEncoder.from_pretrained(tmp_path / "made")
    high, mid = (collection.store(encoder.backbone("image", level), "image") for level in ("high", "mid"))
    assert mid.folder.parent.name.startswith("mid-") and mid.spec == "mid:efficientnet-lite0@64"
    assert torch.equal(high.valid, mid.valid) and not high.valid.all()
    captions = collection.store(encoder.backbone("text"), "text")
    rows = high.valid.nonzero()[:3, 0]
    images = encoder.project_tokens("image", {"high": high.tokens(rows), "mid": mid.tokens(rows)})
    texts = encoder.project_tokens("text", {"high": captions.tokens(torch.arange(5))})
    scores = cross_layer_similarity(images, texts, encoder.local.config.attention, encoder.local.config.terms)
    assert scores.shape == (3, 5) and scores.isfinite().all()
    embeddings = collection.store(encoder, "image").embeddings(rows)
    torch.testing.assert_close(encoder.project("image", _encoded(high, rows)).embedding, embeddings)


def _encoded(store, rows) -> Encoded:
    tokens, lengths = store.tokens(rows)
    return Encoded(store.embeddings(rows), tokens.float(), lengths)


@pytest.mark.slow
def test_backbones_are_trained_end_to_end(collection, tmp_path):
    unfreeze = UnfreezeConfig(epoch=2, precision="bf16", recompute=True, workers=1)
    config = replace(TINY, epochs=2, local=LocalBranchConfig(dim=8), unfreeze=unfreeze)
    specs = {"image": "efficientnet-lite0@64", "text": "minilm@16"}
    made = align_backbones(*specs.values(), collection, tmp_path / "made", config)
    assert [each.spec for each in made.backbones.values()] == [f"tuned:{tmp_path}/made/{each}" for each in MODALITIES]
    lines = [json.loads(line) for line in (tmp_path / "made/metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    # Moved, it works: backbones, their mid levels, and their features, which are extracted anew.
    (tmp_path / "made").rename(tmp_path / "elsewhere")
    encoder = load_encoder(f"hacan:{tmp_path}/elsewhere")
    for modality in MODALITIES:
        for level in ("high", "mid"):
            backbone = encoder.backbone(modality, level)
            assert backbone.spec.endswith(f"tuned:{tmp_path}/elsewhere/{modality}")
        pairs = zip(
            encoder.backbone(modality).network(modality).parameters(),
            load_encoder(specs[modality]).network(modality).parameters(),
            strict=True,
        )
        different = [not torch.equal(tuned, own) for tuned, own in pairs]
        assert sum(different) > 0.9 * len(different)
    found = evaluate_stages([encoder], collection, "val", StagesConfig(stages_of("10:4")))["systems"]["global"]
    assert found["rsum"] == pytest.approx(lines[-1]["val_rsum"], abs=0.01)
