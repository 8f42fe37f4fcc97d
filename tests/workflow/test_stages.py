"""A split ranked stage by stage by HACAN's local branch, against the stages taken by hand from the stores."""

import copy
from dataclasses import replace

import pytest
import torch

from modalloy import align_backbones
from modalloy.align import cross_layer_similarity
from modalloy.align.cross_layer import CROSS_LAYER, FOCAL
from modalloy.data import Manifest
from modalloy.errors import ConfigError, FeatureError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.search import HierarchyConfig
from modalloy.search.depths import DepthLadder
from modalloy.training.align_config import AlignConfig, LocalBranchConfig
from modalloy.workflow.features import Collection
from modalloy.workflow.stages import evaluate_stages, stages_of

TINY = AlignConfig(epochs=1, dim=8, batch_size=8, local=LocalBranchConfig(dim=8))


@pytest.fixture(scope="module")
def own(tiny_manifest, finished_run, tmp_path_factory):
    return Collection(tiny_manifest, tmp_path_factory.mktemp("stages") / "features")


@pytest.fixture(scope="module")
def encoder(own, tmp_path_factory):
    return align_backbones("efficientnet-lite0@64", "minilm", own, tmp_path_factory.mktemp("aligned"), TINY)


def whole_scores(encoder, own, split):
    """Vectors, focal and whole scores of all pairs."""
    items = own.paired([encoder]).split(split)
    rows = {"image": items.image_rows, "text": items.caption_rows}
    tokens = {
        modality: encoder.project_tokens(
            modality,
            {
                level: own.store(encoder.backbone(modality, level), modality).tokens(rows[modality])
                for level in ("high", "mid")
            },
        )
        for modality in ("image", "text")
    }
    attention = encoder.local.config.attention
    focal, whole = (
        cross_layer_similarity(tokens["image"], tokens["text"], attention, terms) for terms in (FOCAL, CROSS_LAYER)
    )
    (scores,) = items.input_scores()
    vectors = scores.score(slice(0, len(rows["image"])), slice(0, len(rows["text"])))
    return vectors, 0.2 * vectors + 0.8 * focal, 0.2 * vectors + 0.8 * focal + (whole - focal), items.caption_image


def rsum(scores, caption_image) -> float:
    return metrics(rank_queries(EmbeddingScores(scores, torch.eye(scores.shape[1])), caption_image)).rsum


def test_at_full_depth_each_stage_ranks_like_its_score(encoder, own):
    *scores, caption_image = whole_scores(encoder, own, "test")
    everything = HierarchyConfig(first=1000, second=1000)
    result = evaluate_stages(encoder, own, "test", everything)
    assert list(result["systems"]) == ["global", "focal", "cross-layer"]
    for name, each in zip(result["systems"], scores, strict=True):
        assert result["systems"][name]["rsum"] == pytest.approx(rsum(each, caption_image), abs=0.5)
    assert {each["a"] for each in result["differences"]} == {"cross-layer"}
    assert result["depths"] == {} and set(result["milliseconds"]) == {"image_to_text", "text_to_image"}
    assert result["test"]["images"] == len(scores[0])


def test_a_truth_that_falls_out_is_a_miss(encoder, own):
    few = evaluate_stages(encoder, own, "test", HierarchyConfig(first=1, second=1))["systems"]
    # By the vectors all items are ranked.
    *scores, caption_image = whole_scores(encoder, own, "test")
    assert few["global"]["rsum"] == pytest.approx(rsum(scores[0], caption_image), abs=0.5)
    for name in ("focal", "cross-layer"):
        recalls = few[name]["text_to_image"]
        assert recalls["R@1"] == recalls["R@5"] == recalls["R@10"] == few["global"]["text_to_image"]["R@1"]


def test_all_items_may_get_the_focal_score_and_the_branchs_own_terms_count(own, tmp_path):
    encoder = align_backbones("efficientnet-lite0@64", "subwords", own, tmp_path / "partly", TINY)
    assert len(encoder.local.config.terms) == 2
    result = evaluate_stages(encoder, own, "test", stages_of("all:10"))
    assert list(result["systems"]) == ["global", "focal", "cross-layer"]
    chosen = evaluate_stages(encoder, own, "test", ladder=DepthLadder(first=(5,), second=(2, 5)))
    assert all(each["split"] == "tune" for each in chosen["depths"].values())
    assert all("second" in each["depths"][0]["config"] for each in chosen["depths"].values())


def test_the_split_of_the_inputs_keeps_its_counts(encoder, own):
    items = tuple(replace(item, split="inputs") if item.split == "val" else item for item in own.manifest)
    other = Collection(Manifest(own.manifest.root, items), own.features)
    result = evaluate_stages(encoder, other, "inputs", HierarchyConfig(5, 2))
    assert result["inputs"]["images"] == 9 and next(iter(result)) == "inputs"


def test_candidates_are_chosen_on_validation_items(encoder, own):
    ladder = DepthLadder(first=(2, 5), second=(1, 2))
    result = evaluate_stages(encoder, own, "test", ladder=ladder)
    for direction, choice in result["depths"].items():
        assert choice["direction"] == direction and len(choice["depths"]) >= 2
        assert choice["depths"][choice["chosen"]]["config"]["first"] in ladder.first


def test_a_choice_on_the_evaluated_split_and_an_encoder_without_a_branch_are_refused(encoder, own, tmp_path):
    with pytest.raises(ConfigError, match="would be chosen on 'tune', the split to evaluate on; give them"):
        evaluate_stages(encoder, own, "tune")
    config = replace(TINY, local=LocalBranchConfig())
    plain = align_backbones("efficientnet-lite0@64", "minilm", own, tmp_path / "plain", config)
    with pytest.raises(ConfigError, match=r"has no local branch to re-rank by; align one"):
        evaluate_stages(plain, own)


def test_items_without_tokens_of_a_level_are_refused(encoder, own, monkeypatch):
    store = Collection.store

    def without_one(self, model, modality, *rest):
        found = store(self, model, modality, *rest)
        if model.spec.startswith("mid:") and modality == "image":
            found = copy.copy(found)
            vars(found)["valid"] = torch.zeros(len(found), dtype=torch.bool)
        return found

    monkeypatch.setattr(Collection, "store", without_one)
    with pytest.raises(FeatureError, match=r"mid:efficientnet-lite0@64 rejected \d+ images that have embeddings"):
        evaluate_stages(encoder, own, "test", HierarchyConfig(5, 2))


@pytest.mark.parametrize("text", ["", "a", "10:", "10:5:2", "-1", "10.5", "5:all"])
def test_stages_that_are_no_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="numbers of candidates like 100:20"):
        stages_of(text)


def test_stages_are_read():
    assert stages_of("all:50") == HierarchyConfig(None, 50) and stages_of("100") == HierarchyConfig(100, None)
    assert stages_of("100:20") == HierarchyConfig(100, 20) and stages_of("chosen") is None
    with pytest.raises(ConfigError, match="second must be at most first"):
        stages_of("10:20")
