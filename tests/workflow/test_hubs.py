"""Ranks with hubs held back, against plain loops, and a tiny run whose table has them, and short vectors."""

import json

import pytest
import torch
from tiny_run import SETTINGS, TRAINING

from modalloy import Alloy, Collection, load_encoder
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.fusion import Mixture, Rotated
from modalloy.workflow import hubs
from modalloy.workflow.config import load_config
from modalloy.workflow.experts import ALLOY
from modalloy.workflow.fuse import FusionFit
from modalloy.workflow.fusion_config import TUNED, FusionConfig
from modalloy.workflow.hubs import held_back, ranks_with_hubs_held_back
from modalloy.workflow.run import Run


@pytest.fixture(scope="module")
def fits(finished_run, tiny_manifest, tmp_path_factory):
    encoders = [load_encoder(f"hacan:{finished_run / 'inputs' / number}") for number in "12"]
    collection = Collection(tiny_manifest, finished_run / "features")
    return FusionFit(encoders, collection, FusionConfig(), tmp_path_factory.mktemp("fits"))


def vectors(fuser, split):
    return fuser.embed_rows(split.paired.image, split.image_rows), fuser.embed_rows(
        split.paired.text, split.caption_rows
    )


def corrected(scores, bank, k, share):
    """Scores of queries (rows) with a gallery, less what each gallery item has with the bank's nearest queries."""
    taken_off = [share * sum(sorted(row.tolist(), reverse=True)[:k]) / k for row in bank]
    return scores - torch.tensor(taken_off)[None, :]


def recall_sum(scores, truths) -> float:
    found = 0.0
    for cutoff in (1, 5, 10):
        for query, own in enumerate(truths):
            best = max(float(scores[query, item]) for item in own)
            above = sum(float(each) > best for each in scores[query])
            found += 100 * (above < cutoff) / len(truths)
    return found


@pytest.mark.parametrize(("k", "share"), [(3, 0.5), (8, 1.0)])
def test_equals_a_plain_loop(fits, monkeypatch, k, share):
    monkeypatch.setattr(hubs, "_NEIGHBOURS", (k,))
    monkeypatch.setattr(hubs, "_SHARES", (share,))
    fuser, test = fits.fit(TUNED), fits.features.split("test")
    ranks = ranks_with_hubs_held_back(fuser, fits.train, fits.validation, test)
    (image, text), (bank_image, bank_text) = vectors(fuser, test), vectors(fuser, fits.train)
    image_of = test.caption_image.tolist()
    to_image = corrected(text @ image.T, image @ bank_text.T, k, share)
    to_text = corrected(image @ text.T, text @ bank_image.T, k, share)
    found = metrics(ranks)
    captions = [[row for row, own in enumerate(image_of) if own == each] for each in range(len(image))]
    assert found.text_to_image.rsum == pytest.approx(recall_sum(to_image, [[each] for each in image_of]), abs=1e-3)
    assert found.image_to_text.rsum == pytest.approx(recall_sum(to_text, captions), abs=1e-3)


def test_without_a_share_nothing_changes(fits, monkeypatch):
    monkeypatch.setattr(hubs, "_SHARES", (0.0,))
    fuser, test = fits.fit(TUNED), fits.features.split("test")
    ranks = ranks_with_hubs_held_back(fuser, fits.train, fits.validation, test)
    plain = rank_queries(test.scores(fuser), test.caption_image)
    assert torch.equal(ranks.text_to_image, plain.text_to_image)
    assert torch.equal(ranks.image_to_text, plain.image_to_text)


def test_a_run_delivers_its_alloy_and_also_tells_what_holding_back_hubs_does(tiny_collection, finished_run, tmp_path):
    expert = {"name": "linear", "towers": {"method": "concat-linear", "read_summaries": True}}
    settings = {
        **SETTINGS,
        "collection": str(tiny_collection),
        "folder": str(tmp_path / "run"),
        "features": str(finished_run / "features"),
        "hold_back_hubs": True,
        "seeds": [0],
        "fusion": {
            "methods": ["mean of cosines", TUNED],
            "regime": "auto",
            "vector_dim": 12,
            "experts": [{**expert, "training": {"epochs": 1, **TRAINING}}],
        },
    }
    (tmp_path / "config.yaml").write_text(json.dumps(settings))
    run = Run(load_config(tmp_path / "config.yaml"))
    report = run.execute()
    systems = ["linear with the inputs", ALLOY]
    assert {*systems, *map(held_back, [TUNED, *systems])} <= set(report["systems"])
    assert "HADA stage 2" not in report["systems"]
    references = list(dict.fromkeys(each["a"] for each in report["differences"]))
    assert references == ["alloy, 12 numbers", ALLOY, held_back(ALLOY)]
    assert report["delivered"] == "alloy, 12 numbers"
    assert report["regime"]["verdict"] in ("shared", "foreign", "mixed")
    assert report["regime"]["sentence"] in (tmp_path / "run" / "report.html").read_text().replace("&#39;", "'")
    fuser, whole = Alloy.from_pretrained(tmp_path / "run").fuser, run.fits.fit(ALLOY)
    assert isinstance(fuser, Rotated) and isinstance(fuser.fuser, Mixture)
    # The cut vectors are the whole ones along the 12 directions in which the training vectors are largest.
    image, text = vectors(whole, run.test)
    directions = torch.linalg.svd(torch.cat(vectors(whole, run.fits.train)).double()).Vh[:12].T.float()
    short = [torch.nn.functional.normalize(each @ directions, dim=1) for each in (image, text)]
    found = metrics(rank_queries(EmbeddingScores(*short), run.test.caption_image))
    assert report["systems"]["alloy, 12 numbers"]["rsum"] == pytest.approx(found.rsum, abs=0.5)
    own_image, own_text = vectors(fuser, run.test)
    torch.testing.assert_close(own_image @ own_text.T, short[0] @ short[1].T, rtol=0, atol=1e-4)
