import re
import shutil
from dataclasses import replace

import pytest
import torch

from modalloy.files import read_json
from modalloy.fusion import ScoreFusion
from modalloy.workflow import report as gathering
from modalloy.workflow.experts import ExpertConfig
from modalloy.workflow.run import Delivered, Run


@pytest.fixture(scope="module")
def run(finished_run):
    return Run.open(finished_run)


@pytest.fixture(scope="module")
def results(finished_run):
    return read_json(finished_run / "report.json")


def test_it_is_written_anew(finished_run, run_copy):
    page = (run_copy / "report.html").read_text()
    (run_copy / "report.html").unlink()
    report = Run.open(run_copy).write_report()
    assert report["folder"] == str(run_copy)
    again = (run_copy / "report.html").read_text()
    # The configuration names the run's folder, which is another here; the first page lacks its own time.
    shown = re.compile(r'<dl class="seconds">.*?</dl>', flags=re.DOTALL)
    first, second = (shown.search(each).group() for each in (page, again))
    assert "evaluate" in first and "evaluate" in second
    assert shown.sub("", again).replace(str(run_copy), "") == shown.sub("", page).replace(str(finished_run), "")


def test_every_fit_has_its_curve(run):
    curves = gathering._training(run)
    fits = [
        f"{name}-stage-{stage}, seed-{seed}"
        for name in ("concat-linear", "concat-wide", "hada")
        for stage in (1, 2)
        for seed in (0, 1)
    ]
    assert sorted(curves) == sorted([*(each.name for each in run.config.inputs), *fits])
    assert [row["epoch"] for row in curves["hada-stage-1, seed-0"]] == [0, 1, 2]


def test_fits_of_systems_that_the_run_no_longer_has_are_not_shown(run_copy):
    kept = ("mean of cosines", "validation-tuned weighted cosine", "HADA stage 1")
    for name in ("expert-old", "expert-new"):
        shutil.copytree(run_copy / "fits/hada-stage-1", run_copy / "fits" / name)
    config = Run.open(run_copy).config
    fusion = replace(config.fusion, methods=kept, experts=(ExpertConfig("new"),))
    curves = gathering._training(Run(replace(config, fusion=fusion, seeds=(1,))))
    assert list(curves) == [*(each.name for each in config.inputs), "expert-new, seed-1", "hada-stage-1, seed-1"]


def test_examples_name_the_true_picture_and_what_each_system_finds(run, results):
    examples = gathering._examples(run, results["best_input"])
    assert len({example.query for example in examples}) == len(examples) >= 4
    for example in examples:
        owner = next(item for item in run.collection.manifest.split("test") if example.query in item.captions)
        assert example.truth == run.collection.manifest.absolute(owner)
        assert set(example.results) == {*(each.name for each in run.config.inputs), "HADA stage 2"}
        for name, found in example.results.items():
            # Found at rank 1 exactly if it is first; a rank beyond what is shown isn't shown.
            assert (found[0] == example.truth) == (example.ranks[name] == 1)
            assert (example.truth in found) == (example.ranks[name] <= len(found))
            assert all(path.exists() for path in found)


def test_the_first_examples_gain_most_over_the_best_input(run, results):
    best, delivered = results["best_input"], "HADA stage 2"
    first = gathering._examples(run, best)[0]
    gain = torch.log(torch.tensor(first.ranks[best] / first.ranks[delivered]))
    seed = run.delivered.seed_position
    gains = (run.ranks[best][0].text_to_image / run.ranks[delivered][seed].text_to_image).log()
    assert float(gain) == pytest.approx(float(gains.max()), abs=1e-5)


def test_attention_covers_each_encoders_tokens(run):
    examples = gathering._attentions(run)
    assert 0 < len(examples) <= 6
    for example in examples:
        grids = {each.name: encoder.token_grid() for each, encoder in zip(run.config.inputs, run.encoders, strict=True)}
        assert {name: tuple(image_map.shape) for name, image_map in example.image_maps.items()} == grids
        assert set(example.word_weights) == set(grids)
        for weights in example.word_weights.values():
            values = [weight for _, weight in weights]
            assert all(0 <= value <= 1 for value in values)


def test_a_fusion_without_a_graph_has_no_attention(run, finished_run):
    other = Run.open(finished_run)
    fuser = ScoreFusion([1.0, 1.0], other.fits.shapes)
    other.__dict__["delivered"] = Delivered("mean of cosines", 0, fuser)
    assert gathering._attentions(other) == []


def test_provenance_says_what_made_the_numbers(run):
    provenance = gathering._provenance(run)
    assert run.collection.manifest.fingerprint in provenance["collection"]
    assert "token_dim: 8" in provenance["configuration"]
    for each, encoder in zip(run.config.inputs, run.encoders, strict=True):
        for side in ("image", "text"):
            assert encoder.fingerprint(side).weights_sha256 in provenance[f"{each.name}, {side}"]
