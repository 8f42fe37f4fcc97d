"""A split ranked stage by stage by HACAN's local branch, against the stages taken by hand from the stores."""

import shutil
from dataclasses import replace

import pytest
import torch

from modalloy import align_backbones
from modalloy.align import AlignedEncoder, LocalLevel, cross_layer_similarity
from modalloy.align.cross_layer import CROSS_LAYER, FOCAL
from modalloy.data import Manifest
from modalloy.errors import ConfigError, DataError, FeatureError
from modalloy.evaluation import EmbeddingScores, metrics, rank_in_folds, rank_queries
from modalloy.features import FeatureStore
from modalloy.report.table import systems_table
from modalloy.search import HierarchyConfig
from modalloy.search.depths import DepthLadder
from modalloy.search.global_weight import WEIGHTS
from modalloy.training.align import fit_aligner
from modalloy.training.align_config import AlignConfig, LocalBranchConfig
from modalloy.workflow import stages
from modalloy.workflow.evaluate import evaluate
from modalloy.workflow.features import Collection
from modalloy.workflow.local_features import LocalFeatures
from modalloy.workflow.stages_config import StagesConfig, stages_of


def evaluate_stages(encoders, collection, split="test", depth=None, **options):
    return stages.evaluate_stages(encoders, collection, split, StagesConfig(depth, timed=1, **options))


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
    everything = HierarchyConfig(1000, 1000)
    result = evaluate_stages([encoder], own, "test", everything)
    assert list(result["systems"]) == ["global", "focal", "cross-layer"]
    for name, each in zip(result["systems"], scores, strict=True):
        assert result["systems"][name]["rsum"] == pytest.approx(rsum(each, caption_image), abs=0.5)
    assert {each["a"] for each in result["differences"]} == {"cross-layer"}
    assert result["depths"] == {}
    for kind in ("milliseconds", "batched"):
        assert set(result[kind]) == {"image_to_text", "text_to_image"}
        assert all(list(times) == list(result["systems"]) for times in result[kind].values())
    assert result["test"]["images"] == len(scores[0])


def test_a_truth_that_falls_out_is_a_miss(encoder, own):
    few = evaluate_stages([encoder], own, "test", HierarchyConfig(1, 1))["systems"]
    # By the vectors all items are ranked.
    *scores, caption_image = whole_scores(encoder, own, "test")
    assert few["global"]["rsum"] == pytest.approx(rsum(scores[0], caption_image), abs=0.5)
    for name in ("focal", "cross-layer"):
        recalls = few[name]["text_to_image"]
        assert recalls["R@1"] == recalls["R@5"] == recalls["R@10"] == few["global"]["text_to_image"]["R@1"]


def test_all_items_may_get_the_focal_score_and_the_branchs_own_terms_count(own, tmp_path):
    encoder = align_backbones("efficientnet-lite0@64", "subwords", own, tmp_path / "partly", TINY)
    assert len(encoder.local.config.terms) == 2
    result = evaluate_stages([encoder], own, "test", stages_of("all:10"))
    assert list(result["systems"]) == ["global", "focal", "cross-layer"]
    chosen = evaluate_stages([encoder], own, "test", ladder=DepthLadder((5,), (2, 5)))
    assert all(each["split"] == "tune" for each in chosen["depths"].values())
    assert all(each["depths"][0]["config"]["cross_candidates"] == 2 for each in chosen["depths"].values())


def test_the_split_of_the_inputs_keeps_its_counts(encoder, own):
    items = tuple(replace(item, split="inputs") if item.split == "val" else item for item in own.manifest)
    other = Collection(Manifest(own.manifest.root, items), own.features)
    result = evaluate_stages([encoder], other, "inputs", HierarchyConfig(5, 2))
    assert result["inputs"]["images"] == 9 and next(iter(result)) == "inputs"


def test_candidates_are_chosen_on_validation_items(encoder, own):
    ladder = DepthLadder((2, 5), (1, 2))
    result = evaluate_stages([encoder], own, "test", ladder=ladder)
    for direction, choice in result["depths"].items():
        assert choice["direction"] == direction and len(choice["depths"]) >= 2
        assert choice["depths"][choice["chosen"]]["config"]["focal_candidates"] in ladder.focal_candidates


def test_the_weight_of_the_vectors_is_chosen_on_validation_items(encoder, own):
    depth = HierarchyConfig(5, 2)
    chosen = evaluate_stages([encoder], own, "test", depth, global_weight="chosen")
    (weight,) = chosen["global_weight"].values()

    def on_tune(weight: float) -> float:
        return evaluate_stages([encoder], own, "tune", depth, global_weight=weight)["systems"]["cross-layer"]["rsum"]

    assert on_tune(weight) == max(map(on_tune, WEIGHTS))
    given = evaluate_stages([encoder], own, "test", depth, global_weight=weight)
    assert given["systems"] == chosen["systems"] and given["global_weight"] == chosen["global_weight"]
    alone = evaluate_stages([encoder], own, "test", depth, global_weight=1000.0)["systems"]
    # So much weight leaves nothing to the local scores.
    assert alone["cross-layer"]["text_to_image"]["R@1"] == alone["global"]["text_to_image"]["R@1"]


def test_a_choice_on_the_evaluated_split_and_an_encoder_without_a_branch_are_refused(encoder, own, tmp_path):
    with pytest.raises(ConfigError, match="the candidates would be chosen on 'tune', the split to evaluate on; give"):
        evaluate_stages([encoder], own, "tune")
    with pytest.raises(ConfigError, match="the weight would be chosen on 'tune'"):
        evaluate_stages([encoder], own, "tune", HierarchyConfig(5, 2), global_weight="chosen")
    config = replace(TINY, local=LocalBranchConfig())
    plain = align_backbones("efficientnet-lite0@64", "minilm", own, tmp_path / "plain", config)
    with pytest.raises(ConfigError, match=r"has no local branch to re-rank by; align one"):
        evaluate_stages([plain], own)


@pytest.fixture(scope="module")
def other(own, tmp_path_factory):
    """A model whose regions attend to words, as HACAN's other one."""
    local = LocalBranchConfig(dim=8, direction="i2t")
    return align_backbones(
        "efficientnet-lite0@64", "minilm", own, tmp_path_factory.mktemp("other"), replace(TINY, local=local)
    )


def test_encoders_are_averaged_stage_by_stage(encoder, other, own):
    both = [encoder, other]
    result = evaluate_stages(both, own, "test", HierarchyConfig(1000, 1000))
    names = [each.spec for each in both]
    names_of_stages = ("global", "focal", "cross-layer")
    assert list(result["systems"]) == [f"{name}, {stage}" for name in (*names, "average") for stage in names_of_stages]
    every = [whole_scores(each, own, "test") for each in both]
    for place, stage in enumerate(names_of_stages):
        average = (every[0][place] + every[1][place]) / 2
        found = result["systems"][f"average, {stage}"]["rsum"]
        assert found == pytest.approx(rsum(average, every[0][-1]), abs=0.5)
    assert {each["a"] for each in result["differences"]} == {"average, cross-layer"}
    assert len(result["differences"]) == 8
    # Each alone is what it is without the other.
    alone = evaluate_stages([other], own, "test", HierarchyConfig(1000, 1000))
    for stage in names_of_stages:
        assert result["systems"][f"{names[1]}, {stage}"] == alone["systems"][stage]


def test_the_average_and_each_alone_have_depths_of_their_own(encoder, other, own):
    result = evaluate_stages([encoder, other], own, "test", ladder=DepthLadder((2, 5), (1,), recall=1.0))
    assert len(result["depths"]) == 6
    choice = result["depths"]["average, text_to_image"]
    assert (choice["system"], choice["split"], choice["recall"]) == ("average", "tune", 1.0)


def test_an_average_has_the_stages_that_all_its_encoders_have(encoder, own, tmp_path):
    stores = [own.store(encoder.backbone(modality), modality) for modality in ("image", "text")]
    focal = fit_aligner(TINY, *stores, own.manifest, tmp_path, name="focal")
    result = evaluate_stages([encoder, focal], own, "test", ladder=DepthLadder((2,), (1,)))
    of_each = [("global", "focal", "cross-layer"), ("global", "focal"), ("global", "focal")]
    names = (encoder.name, "focal", "average")
    assert list(result["systems"]) == [
        f"{name}, {stage}" for name, stages in zip(names, of_each, strict=True) for stage in stages
    ]


def test_an_encoder_twice_or_called_average_is_refused(encoder, own, other, monkeypatch):
    with pytest.raises(ConfigError, match="is given 2 times"):
        evaluate_stages([encoder, encoder], own, "test", HierarchyConfig(5, 2))
    monkeypatch.setattr(other, "name", "average")
    with pytest.raises(ConfigError, match="no encoder may be called 'average'"):
        evaluate_stages([encoder, other], own, "test", HierarchyConfig(5, 2))


def test_each_fold_is_searched_on_its_own(encoder, own):
    # 9 pictures of the validation part.
    found = evaluate_stages([encoder], own, "val", HierarchyConfig(1000, 1000), fold_size=3)
    assert found["val"]["fold_size"] == 3 and "in folds of 3 images" in str(systems_table(found).title)
    *scores, caption_image = whole_scores(encoder, own, "val")
    for name, each in zip(found["systems"], scores, strict=True):
        ranks = rank_in_folds(EmbeddingScores(each, torch.eye(each.shape[1])), caption_image, 3)
        assert found["systems"][name]["rsum"] == pytest.approx(metrics(ranks).rsum, abs=0.5)
    plain = evaluate([encoder], own, "val", 3)["systems"][encoder.name]
    assert found["systems"]["global"]["rsum"] == plain["rsum"]
    with pytest.raises(DataError, match="val: 9 images don't make folds of 4"):
        evaluate_stages([encoder], own, "val", HierarchyConfig(5, 2), fold_size=4)
    with pytest.raises(DataError, match="tune: 10 images don't make folds of 4"):
        evaluate_stages([encoder], own, "test", HierarchyConfig(5, 2), fold_size=4, global_weight="chosen")


def test_an_item_that_lacks_a_level_alone_is_left_out(encoder, own, monkeypatch, caplog):
    whole = evaluate_stages([encoder], own, "test", HierarchyConfig(1000, 1000))["test"]
    rows = own.paired([encoder]).split("test")
    lost = int(rows.image_rows[1])
    backbone_store = Collection.backbone_store

    def without_one(self, model, modality, level="high", copy=None):
        found = backbone_store(self, model, modality, level, copy)
        if level == "mid" and modality == "image":
            found = FeatureStore.open(found.folder)
            vars(found)["valid"] = torch.arange(len(found)) != lost
        return found

    monkeypatch.setattr(Collection, "backbone_store", without_one)
    fewer = evaluate_stages([encoder], own, "test", HierarchyConfig(1000, 1000))
    captions = int((rows.caption_image == 1).sum())
    assert fewer["test"] == {"images": whole["images"] - 1, "captions": whole["captions"] - captions}
    assert fewer["systems"]["global"]["text_to_image"]["queries"] == whole["captions"] - captions
    # Beside the picture that no encoder can read.
    assert f"left out of test: 2 images and {captions + 1} captions" in caplog.text
    # The rows stay aligned: what is left ranks as it does without that picture.
    monkeypatch.undo()
    *scores, caption_image = whole_scores(encoder, own, "test")
    kept = caption_image != 1
    for name, each in zip(fewer["systems"], scores, strict=True):
        expected = rsum(
            each[torch.arange(len(each)) != 1][:, kept], caption_image[kept] - (caption_image[kept] > 1).long()
        )
        assert fewer["systems"][name]["rsum"] == pytest.approx(expected, abs=0.5)


def test_stored_features_suffice_where_the_backbones_are_missing(encoder, own, monkeypatch):
    known = evaluate_stages([encoder], own, "test", HierarchyConfig(5, 2))

    def missing(spec: str):
        raise ConfigError(f"{spec} isn't there")

    monkeypatch.setattr("modalloy.align.encoder.load_encoder", missing)
    again = AlignedEncoder.from_pretrained(encoder.spec.removeprefix("hacan:"))
    assert evaluate_stages([again], own, "test", HierarchyConfig(5, 2))["systems"] == known["systems"]


def image_tokens(encoder, own):
    (fold,) = LocalFeatures([encoder], own).folds("test", None, [0])
    tokens = fold.search.members[0].images.tokens
    return tokens.read(torch.arange(len(tokens)), ("high", "mid"))


def test_tokens_are_mapped_once_ever_wherever_the_encoder_is(encoder, own, tmp_path, monkeypatch):
    known, rows = image_tokens(encoder, own), own.paired([encoder]).split("test").image_rows
    for level, tokens in known.items():
        exact = encoder.project_tokens(
            "image", {level: own.store(encoder.backbone("image", level), "image").tokens(rows)}
        )
        torch.testing.assert_close(tokens.values, exact[level].values, rtol=1e-3, atol=1e-6)

    def refuse(*_):
        raise AssertionError("mapped again")

    shutil.copytree(encoder.spec.removeprefix("hacan:"), tmp_path / "moved")
    moved, changed = (AlignedEncoder.from_pretrained(tmp_path / "moved") for _ in range(2))
    changed.local.image_high.weight.data[0, 0] += 1
    with monkeypatch.context() as patched:
        patched.setattr(LocalLevel, "project", refuse)
        for each in (encoder, moved):
            assert all(
                torch.equal(found.values, known[level].values) for level, found in image_tokens(each, own).items()
            )
        with pytest.raises(AssertionError, match="mapped again"):
            image_tokens(changed, own)
    # Both stay, each in a place of its own, and what hasn't changed serves both.
    other = image_tokens(changed, own)
    assert torch.equal(other["mid"].values, known["mid"].values)
    assert not torch.equal(other["high"].values, known["high"].values)
    assert torch.equal(image_tokens(encoder, own)["high"].values, known["high"].values)


def test_a_token_that_float16_cannot_hold_is_told(encoder, own, tmp_path):
    shutil.copytree(encoder.spec.removeprefix("hacan:"), tmp_path / "large")
    large = AlignedEncoder.from_pretrained(tmp_path / "large")
    large.local.image_mid.bias.data[0] = 70000.0
    with pytest.raises(FeatureError, match=r"local-mid:hacan:.*beyond float16\) of '[^#]*', where finite numbers"):
        image_tokens(large, own)


@pytest.mark.parametrize("text", ["", "a", "10:", "10:5:2", "-1", "10.5", "5:all"])
def test_stages_that_are_no_numbers_are_refused(text):
    with pytest.raises(ConfigError, match="numbers of candidates like 100:20"):
        stages_of(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timed": 0}, "timed must be at least 1, got 0"),
        ({"fold_size": 0}, "fold_size must be at least 1, got 0"),
        ({"global_weight": -0.1}, r"global_weight must be 0 or more, got -0\.1"),
        ({"global_weight": float("nan")}, "global_weight must be 0 or more, got nan"),
    ],
)
def test_impossible_settings_are_refused_when_they_are_read(settings, message):
    with pytest.raises(ConfigError, match=message):
        StagesConfig(**settings)


def test_stages_are_read():
    assert stages_of("all:50") == HierarchyConfig(None, 50) and stages_of("100") == HierarchyConfig(100, None)
    assert stages_of("100:20") == HierarchyConfig(100, 20) and stages_of("chosen") is None
    with pytest.raises(ConfigError, match="cross_candidates must be at most focal_candidates"):
        stages_of("10:20")
