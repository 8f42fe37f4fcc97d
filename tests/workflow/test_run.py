import io
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_run import IMAGES, SETTINGS, TRUNCATED, write_config

from modalloy import Alloy, Searcher, load_encoder
from modalloy.data import Manifest, demo_manifest, read_collection
from modalloy.errors import ConfigError, DataError
from modalloy.evaluation import EmbeddingScores, metrics, rank_queries
from modalloy.files import read_json
from modalloy.fusion import FeatureSet, Rotated, TowerConfig, TowerFuser, input_shapes
from modalloy.index.columns import vectors_in
from modalloy.index.schema import VECTOR
from modalloy.training import trainer
from modalloy.training.align import fit_aligner
from modalloy.training.align_config import LocalBranchConfig, UnfreezeConfig
from modalloy.training.tracking import TrackingConfig
from modalloy.workflow.config import InputConfig, load_config, save_config
from modalloy.workflow.run import Run

# Its package has a function of the same name.
EXTRACTION = import_module("modalloy.features.extract")
NAMES = [
    *(each["name"] for each in SETTINGS["inputs"]),
    "mean of cosines",
    "validation-tuned weighted cosine",
    "B1 (rank average)",
    "B2 (concat-linear)",
    "B2 (as many parameters as HADA)",
    "HADA stage 1",
    "HADA stage 2",
]


def results(report):
    """A report without what may differ between equal runs."""
    return {key: value for key, value in report.items() if key not in ("seconds", "folder")}


@pytest.fixture
def no_work(monkeypatch):
    """Makes extraction of an item and training of an epoch fail, so that only what is stored can be used."""

    def fail(*_, **__):
        raise AssertionError("a reused run must not do this again")

    monkeypatch.setattr(EXTRACTION, "_run", fail)
    monkeypatch.setattr(trainer.Trainer, "fit", fail)


def test_a_run_searches_with_what_it_has_cut_and_judged(finished_run, tiny_collection, tmp_path):
    config = load_config(
        finished_run / "config.yaml",
        {"folder": str(tmp_path / "run"), "features": str(finished_run / "features"), "fusion.vector_dim": 6},
    )
    run = Run(config)
    report = run.execute()
    name = "HADA stage 2, 6 numbers"
    assert report["delivered"] == name and report["systems"][name]["seeds"] == 2
    assert {each["b"] for each in report["differences"] if each["a"] == name} == {*NAMES}
    # Of the seeds the best one as cut is searched with.
    cut = [Rotated.fit(run.fits.fit("HADA stage 2", seed), run.fits.train, 6) for seed in (0, 1)]
    rsums = [run.fits.validation.rsum(fuser) for fuser in cut]
    assert run.delivered.seed_position == rsums.index(max(rsums))
    assert Searcher.open(tmp_path / "run" / "index").encoder.dim("image") == 6
    # The attention is that of the graph, whose vectors are cut behind it.
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Attention is the mean over the heads" in page and page.count("<h2") == report_sections(finished_run)


def report_sections(run: Path) -> int:
    return (run / "report.html").read_text().count("<h2")


class TestReport:
    def test_it_has_the_promised_form(self, finished_run):
        report = read_json(finished_run / "report.json")
        assert list(report["systems"]) == NAMES
        # A truncated test picture counts for nothing.
        assert report["test"]["images"] == IMAGES["test"]
        captions = sum(len(item.captions) for item in demo_manifest().split("test")[: IMAGES["test"]])
        assert report["test"]["captions"] == captions
        for system in report["systems"].values():
            recalls = [system[side][f"R@{k}"] for side in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
            assert all(0 <= recall <= 100 for recall in recalls)
            assert system["rsum"] == pytest.approx(sum(recalls))
            assert system["low"] <= system["rsum"] <= system["high"]
        assert set(report["seconds"]) == {"extract", "align", "fuse", "index", "evaluate", "report"}
        assert all(seconds >= 0 for seconds in report["seconds"].values())

    def test_both_stages_of_hada_are_compared_with_every_other_system(self, finished_run):
        report = read_json(finished_run / "report.json")
        pairs = [(each["a"], each["b"]) for each in report["differences"]]
        stages = ("HADA stage 2", "HADA stage 1")
        others = [name for name in NAMES if name not in stages]
        # Each pair stands once.
        expected = [*((a, b) for a in stages for b in others), stages]
        assert sorted(pairs) == sorted(expected)
        for each in report["differences"]:
            systems = report["systems"]
            assert each["rsum"] == pytest.approx(systems[each["a"]]["rsum"] - systems[each["b"]]["rsum"])
            assert each["low"] <= each["rsum"] <= each["high"]

    def test_only_trained_fusions_have_a_run_per_seed(self, finished_run):
        systems = read_json(finished_run / "report.json")["systems"]
        seeds = {name: system["seeds"] for name, system in systems.items()}
        assert seeds == {name: 2 if name.startswith(("B2", "HADA")) else 1 for name in NAMES}

    def test_the_page_needs_no_other_file(self, finished_run):
        links = []

        class Links(HTMLParser):
            def handle_starttag(self, tag, attributes):
                links.extend(value for name, value in attributes if name in ("src", "href", "srcset"))

        page = (finished_run / "report.html").read_text()
        Links().feed(page)
        assert links and all(link.startswith(("data:", "#")) for link in links)
        assert not re.search(r"url\((?!['\"]?(data:|#))", page)
        for name in NAMES:
            assert name in page


class TestReuse:
    def test_a_second_run_gives_the_same_without_work(self, finished_run, no_work):
        before = {path: path.stat().st_mtime_ns for path in finished_run.rglob("*.*")}
        report = Run.open(finished_run).execute()
        assert report == read_json(finished_run / "report.json")
        changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
        assert changed <= {"config.yaml", "threads.json"}

    def test_a_moved_run_is_reused_as_it_is(self, finished_run, run_copy, no_work):
        report = Run.open(run_copy).execute()
        assert results(report) == results(read_json(finished_run / "report.json"))
        assert report["folder"] == str(run_copy)

    def test_deleted_products_are_made_again_of_the_same_features_and_fits(self, finished_run, run_copy, no_work):
        for name in ("report.html", "model.safetensors"):
            (run_copy / name).unlink()
        report = Run.open(run_copy).execute()
        assert results(report) == results(read_json(finished_run / "report.json"))
        for name in ("report.html", "model.safetensors"):
            assert (run_copy / name).exists()

    def test_a_changed_training_is_fitted_again_on_the_same_features(self, run_copy, monkeypatch):
        extracted, fitted = [], []
        fit = trainer.Trainer.fit
        monkeypatch.setattr(EXTRACTION, "_run", lambda *_, **__: extracted.append(1))
        monkeypatch.setattr(trainer.Trainer, "fit", lambda *args, **kw: (fitted.append(1), fit(*args, **kw)))
        before = read_json(run_copy / "report.json")
        config = Run.open(run_copy).config
        fusion = replace(config.fusion, second_stage=replace(config.fusion.second_stage, learning_rate=0.05))
        after = Run(replace(config, fusion=fusion, seeds=(0,))).execute()
        # HADA and the two B2, whose first stages stay.
        assert (len(extracted), len(fitted)) == (0, 3)
        assert after["fingerprint"] != before["fingerprint"]
        stays = [name for name in NAMES if after["systems"][name]["seeds"] == before["systems"][name]["seeds"]]
        assert all(
            after["systems"][name] | {"headroom": 0} == before["systems"][name] | {"headroom": 0} for name in stays
        )
        assert Run.open(run_copy).config.fusion.second_stage.learning_rate == 0.05

    def test_tracking_decides_nothing(self, run_copy, no_work):
        config = Run.open(run_copy).config
        before = read_json(run_copy / "report.json")
        report = Run(replace(config, tracking=TrackingConfig("csv"))).execute()
        assert report["fingerprint"] == before["fingerprint"]
        # Nothing was left to do, so nothing was tracked.
        assert not (run_copy / "tracking").exists()

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow uses what SQLAlchemy will drop
    def test_what_is_fitted_is_tracked(self, run_copy):
        from mlflow import MlflowClient

        config = Run.open(run_copy).config
        second = replace(config.fusion.second_stage, learning_rate=0.05)
        config = replace(config, fusion=replace(config.fusion, second_stage=second), seeds=(0,))
        report = Run(replace(config, tracking=TrackingConfig("mlflow"))).execute()
        client = MlflowClient(f"sqlite:///{run_copy / 'tracking' / 'mlflow.db'}")
        (run,) = client.search_runs([client.get_experiment_by_name("modalloy").experiment_id])
        parameters, metrics = run.data.params, run.data.metrics
        assert parameters["fusion/second_stage/learning_rate"] == "0.05"
        assert not [name for name in parameters if name.startswith(("tracking", "threads", "folder"))]
        encoder = load_encoder(f"hacan:{run_copy / 'inputs' / '1'}")
        name = "fingerprints/encoders/nets _ sentences/text"
        assert parameters[name] == encoder.fingerprint("text").digest
        assert parameters["fingerprints/collection"] == Run.open(run_copy).collection.manifest.fingerprint
        # Those of the first stages, too, which were fitted before.
        curves = {name.rpartition("/")[0] for name in metrics if name.endswith("/contrastive")}
        fits = ("hada", "concat-linear", "concat-wide")
        assert curves == {f"{each}-stage-{stage}/seed-0" for each in fits for stage in (1, 2)}
        assert metrics["systems/HADA stage 2/rsum"] == pytest.approx(report["systems"]["HADA stage 2"]["rsum"])
        assert {each.path for each in client.list_artifacts(run.info.run_id)} == {"report.html", "report.json"}

    def test_an_item_moved_to_another_split_counts(self, run_copy, tiny_manifest, tmp_path):
        items = list(tiny_manifest)
        last = max(row for row, item in enumerate(items) if item.split == "test")
        items[last] = replace(items[last], split="val")
        moved = Manifest(tiny_manifest.root, tuple(items))
        moved.save(tmp_path / "manifest.jsonl")
        assert moved.fingerprint == tiny_manifest.fingerprint
        run = Run(replace(Run.open(run_copy).config, collection=str(tmp_path / "manifest.jsonl")))
        assert run._fingerprint() != read_json(run_copy / "report.json")["fingerprint"]

    def test_inputs_without_a_mid_level_are_ranked_by_their_focal_scores(self, run_copy, tmp_path):
        run = Run.open(run_copy)
        stores = [
            run.collection.store(load_encoder(spec), modality)
            for spec, modality in (("efficientnet-lite0@64", "image"), ("minilm", "text"))
        ]
        config = replace(run.config.inputs[0].align, epochs=1, local=LocalBranchConfig(dim=8))
        encoder = fit_aligner(config, *stores, run.collection.manifest, tmp_path / "focal")
        run.encoders = [encoder, run.encoders[1]]
        ((name, found),) = run._stages().items()
        assert name == run.config.inputs[0].name and list(found["systems"]) == ["global", "focal"]

    def test_other_splits_are_drawn_from_the_same_features(self, run_copy, no_work, caplog):
        run = Run.open(run_copy)
        shared, inputs = run.config.splits, run.config.inputs
        assert run._opened[0].counts() == run.collection.manifest.counts() and "own splits" not in caplog.text
        foreign = tuple(replace(each, align=replace(each.align, split="inputs")) for each in inputs)
        drawn = Run(replace(run.config, splits=replace(shared, inputs=0.5), inputs=foreign))
        with caplog.at_level(logging.INFO, "modalloy"):
            counts = drawn.collection.manifest.counts()
        half = IMAGES["train"] // 2
        # Of an odd number with the truncated picture, whose header is whole.
        assert (counts["train"]["images"], counts["inputs"]["images"]) in ((half, half + 1), (half + 1, half))
        assert re.search(r"with the run's own splits: train 1\d images, .*inputs 1\d images", caplog.text)
        drawn._require_splits()
        assert drawn._fingerprint() != run._fingerprint()
        for spec, modality in (("minilm", "text"), ("vit-s14-focus@56", "image")):
            store = drawn.collection.store(load_encoder(spec), modality)
            assert store.folder.is_relative_to(run_copy)

    def test_a_local_branch_counts(self, run_copy):
        run = Run.open(run_copy)
        local = replace(run.config.inputs[0].align, local=LocalBranchConfig(8))
        inputs = (replace(run.config.inputs[0], align=local), run.config.inputs[1])
        assert Run(replace(run.config, inputs=inputs))._fingerprint() != run._fingerprint()

    def test_training_the_backbones_counts_where_it_decides(self, run_copy, monkeypatch):
        hashed = []
        monkeypatch.setattr("modalloy.workflow.run.sha256_of_settings", lambda each: hashed.append(each) or "")
        run = Run.open(run_copy)

        def recorded(unfreeze):
            align = replace(run.config.inputs[0].align, unfreeze=unfreeze)
            inputs = (replace(run.config.inputs[0], align=align), run.config.inputs[1])
            Run(replace(run.config, inputs=inputs))._fingerprint()
            return hashed[-1]["config"]["inputs"]

        # As it was before there was such a training.
        assert all("unfreeze" not in each["align"] for each in recorded(UnfreezeConfig()))
        unfreeze = UnfreezeConfig(epoch=2, crop=0.4)
        trained, frozen = recorded(unfreeze)
        assert trained["align"]["unfreeze"] == unfreeze.deciding() and "unfreeze" not in frozen["align"]
        assert recorded(replace(unfreeze, workers=0, recompute=True))[0] == trained

    def test_a_pretrained_alloy_counts_by_what_it_is(self, finished_run, run_copy):
        run = Run.open(run_copy)
        before = run._fingerprint()

        def pretrained(spec: str) -> str:
            return Run(replace(run.config, fusion=replace(run.config.fusion, pretrained=spec)))._fingerprint()

        assert pretrained(str(finished_run)) == pretrained(f"alloy:{run_copy}") != before

    def test_paths_may_be_relative_or_whole(self, run_copy, monkeypatch):
        """A saved configuration has whole paths, and must still be that of the same run."""
        monkeypatch.chdir(run_copy)
        config = Run.open(run_copy).config
        inputs = tuple(InputConfig(f"input {number}", encoder=f"hacan:inputs/{number}") for number in (1, 2))
        relative = Run(replace(config, inputs=inputs))
        save_config(relative.config, run_copy / "config.yaml")
        whole = Run.open(run_copy)
        assert whole.config.inputs[0].encoder == f"hacan:{run_copy}/inputs/1"
        assert whole._fingerprint() == relative._fingerprint()
        other = replace(config, inputs=(inputs[0], replace(inputs[0], name="input 2")))
        assert Run(other)._fingerprint() != relative._fingerprint()

    def test_it_keeps_the_thread_count_that_it_began_with(self, run_copy, no_work, monkeypatch):
        # The count changes the last bits of a training, and the cores that are idle change from start to start.
        asked = []
        monkeypatch.setattr("modalloy.workflow.run.set_threads", asked.append)
        began_with = read_json(run_copy / "threads.json")["threads"]
        run = Run.open(run_copy)
        run.execute()
        Run(replace(run.config, threads=7)).execute()
        assert asked == [began_with, 7]

    def test_the_configuration_written_is_the_one_that_ran(self, finished_run):
        assert load_config(finished_run / "config.yaml") == load_config(finished_run.with_suffix(".yaml"))


class TestRejects:
    def test_damaged_pictures_are_listed(self, finished_run):
        rejects = finished_run / "features" / "vit-s14-focus@56" / "image" / "rejects.jsonl"
        listed = {json.loads(line)["id"]: json.loads(line)["reason"] for line in rejects.read_text().splitlines()}
        assert set(listed) == set(TRUNCATED)
        assert all("truncated" in reason for reason in listed.values())

    def test_no_row_is_shifted_and_no_damaged_picture_is_found(self, finished_run, tiny_manifest):
        searcher = Searcher.open(finished_run)
        held = {id for batch in searcher.snapshot.scan(["picture_id"]) for id in batch["picture_id"].to_pylist()}
        assert held == set(tiny_manifest.image_ids) - set(TRUNCATED)
        last = tiny_manifest[-1]
        hits = searcher.by_image(tiny_manifest.absolute(last), k=len(tiny_manifest))
        assert hits[0].id == last.id and hits[0].path == str(tiny_manifest.absolute(last))
        assert len(hits) == len(tiny_manifest) - len(TRUNCATED)

    def test_the_index_knows_the_pictures_and_their_files(self, finished_run, tiny_manifest):
        snapshot, item = Searcher.open(finished_run).snapshot, tiny_manifest[0]
        columns = ["path", "sha256", "bytes", "split", "captions", "width", "height", "thumbnail"]
        (row,) = snapshot.rows([item.id], columns).to_pylist()
        with Image.open(tiny_manifest.absolute(item)) as picture:
            assert (row["width"], row["height"]) == picture.size
        with Image.open(io.BytesIO(row["thumbnail"])) as thumbnail:
            assert max(thumbnail.size) <= 320
        assert (row["path"], row["sha256"], row["split"]) == (item.path, item.sha256, item.split)
        assert row["captions"] == list(item.captions)
        assert row["bytes"] == tiny_manifest.absolute(item).stat().st_size
        (source,) = snapshot.head.sources
        assert source.root == str(tiny_manifest.root.resolve()) and Path(source.collection).exists()

    def test_a_failure_by_rejects_says_why_and_is_forgotten_when_they_are_mended(self, tiny_collection, tmp_path):
        collection = shutil.copytree(tiny_collection, tmp_path / "collection")
        manifest = read_collection(collection)[0]
        manifest.save(collection / "manifest.jsonl")
        config = write_config(collection / "manifest.jsonl", tmp_path / "run", tmp_path / "run.yaml")
        config = replace(config, features=str(tmp_path / "shared"))
        whole = {manifest.absolute(item): manifest.absolute(item).read_bytes() for item in manifest.split("test")}
        for path in whole:
            path.write_bytes(b"no picture")
        with pytest.raises(DataError, match=r"no usable captioned image in test.* items were rejected, first .*: "):
            Run(config).execute()
        for path, content in whole.items():
            path.write_bytes(content)
        report = Run(config).execute()
        assert report["test"]["images"] == IMAGES["test"]
        assert not (tmp_path / "run" / "features").exists() and (tmp_path / "shared" / "minilm").is_dir()


def stored_vectors(run: Path, modality, ids):
    column = VECTOR[modality]
    return vectors_in(Searcher.open(run).snapshot.rows(ids, [column]), column)


class TestAlloy:
    def test_new_items_get_the_vectors_of_the_index(self, finished_run, tiny_manifest):
        alloy = Alloy.from_pretrained(finished_run)
        items = [tiny_manifest[row] for row in (0, 4, 20, len(tiny_manifest) - 1)]
        assert not {item.id for item in items} & set(TRUNCATED)
        fresh = alloy.encode_images([tiny_manifest.absolute(item) for item in items]).embedding
        assert torch.allclose(fresh, stored_vectors(finished_run, "image", [item.id for item in items]), atol=1e-4)
        captions = dict(zip(items[0].caption_ids, items[0].captions, strict=True))
        fresh = alloy.encode_texts(list(captions.values())).embedding
        assert torch.allclose(fresh, stored_vectors(finished_run, "text", list(captions)), atol=1e-4)

    def test_stored_tokens_of_half_precision_are_precise_enough(self, finished_run, tiny_manifest):
        # A random start lets the tokens decide; the identity leaves most of the vector to the embeddings.
        run = Run.open(finished_run)
        paired = run.collection.paired(run.encoders)
        torch.manual_seed(0)
        fuser = TowerFuser(TowerConfig(token_dim=8, start="random"), input_shapes(paired.image, paired.text))
        alloy = Alloy(run.encoders, fuser)
        rows = torch.arange(10)
        stored = fuser.embed_rows(paired.text, rows)
        assert torch.allclose(alloy.encode_texts(tiny_manifest.captions[:10]).embedding, stored, atol=1e-3)
        features: FeatureSet = paired.image
        rows = features.valid.nonzero().squeeze(1)[:4]
        paths = [tiny_manifest.absolute(tiny_manifest[row]) for row in rows.tolist()]
        assert torch.allclose(alloy.encode_images(paths).embedding, fuser.embed_rows(features, rows), atol=1e-3)

    def test_it_scores_as_the_report_says(self, finished_run):
        """The delivered alloy's RSum, from the index's vectors alone, is that of one seed of HADA stage 2."""
        run = Run.open(finished_run)
        test = run.test
        manifest = run.collection.manifest
        images = stored_vectors(finished_run, "image", [manifest.image_ids[row] for row in test.image_rows])
        texts = stored_vectors(finished_run, "text", [manifest.caption_ids[row] for row in test.caption_rows])
        scores = EmbeddingScores(images, texts)
        rsum = metrics(rank_queries(scores, test.caption_image)).rsum
        system = read_json(finished_run / "report.json")["systems"]["HADA stage 2"]
        # Of two seeds the mean is rsum ± the spread (their standard deviation) / sqrt(2).
        assert abs(rsum - system["rsum"]) == pytest.approx(system["spread"] / math.sqrt(2), abs=1e-6)

    def test_a_moved_run_is_loaded_and_searched(self, finished_run, run_copy, tiny_manifest):
        alloy = Alloy.from_pretrained(run_copy)
        assert all(str(run_copy) in encoder.spec for encoder in alloy.encoders)
        query = tiny_manifest.captions[0]
        before = Searcher.open(finished_run / "index").by_text(query, k=3)
        assert Searcher.open(run_copy).by_text(query, k=3) == before


class TestMistakes:
    def test_a_tracker_that_cannot_start_stops_the_run_before_its_work(self, tiny_collection, tmp_path, no_work):
        config = write_config(tiny_collection, tmp_path / "run", tmp_path / "run.yaml")
        (tmp_path / "file").write_text("in the way")
        tracking = TrackingConfig("csv", folder=str(tmp_path / "file"))
        with pytest.raises(ConfigError, match="tracking by csv can't start"):
            Run(replace(config, tracking=tracking)).execute()

    def test_a_folder_without_configuration_is_no_run(self, tmp_path):
        with pytest.raises(DataError, match=r"no run directory \(no config.yaml\)"):
            Run.open(tmp_path)

    @pytest.mark.parametrize("split", ["train", "tune", "test"])
    def test_a_missing_split_is_found_before_the_work(self, tmp_path, tiny_manifest, no_work, split):
        left = tuple(item for item in tiny_manifest if item.split not in (split, "val"))
        Manifest(tiny_manifest.root, left).save(tmp_path / "manifest.jsonl")
        config = write_config(tmp_path / "manifest.jsonl", tmp_path / "run", tmp_path / "run.yaml")
        with pytest.raises(DataError, match=f"no captioned image in '{'val' if split == 'tune' else split}'"):
            Run(config).execute()

    def test_the_split_that_an_input_is_aligned_on_must_be_there(self, tmp_path, tiny_collection, no_work):
        config = write_config(tiny_collection, tmp_path / "run", tmp_path / "run.yaml")
        foreign = replace(config.inputs[1], align=replace(config.inputs[1].align, split="inputs"))
        with pytest.raises(DataError, match="no captioned image in 'inputs', which a run needs"):
            Run(replace(config, inputs=(config.inputs[0], foreign))).execute()

    def test_a_run_on_ray_without_ray_makes_no_folder(self, finished_run, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        config = replace(Run.open(finished_run).config, folder=str(tmp_path / "run"))
        with pytest.raises(ConfigError, match="needs Ray"):
            Run(replace(config, extraction=replace(config.extraction, runner="ray"))).execute()
        assert not (tmp_path / "run").exists()

    def test_an_unfinished_run_has_no_report(self, run_copy):
        (run_copy / "report.json").unlink()
        with pytest.raises(DataError, match=r"report\.json doesn't exist"):
            Run.open(run_copy).write_report()


class Killed(BaseException):
    """Stands for the end of the process."""


def test_interrupted_at_every_so_many_writes_it_ends_the_same(finished_run, tiny_collection, tmp_path, monkeypatch):
    writes, replace_file = 0, os.replace

    def write(*arguments):
        nonlocal writes
        writes += 1
        if writes % 53 == 0:
            raise Killed
        replace_file(*arguments)

    monkeypatch.setattr("modalloy.files.os.replace", write)
    config = write_config(tiny_collection, tmp_path / "run", tmp_path / "run.yaml")
    kills = 0
    while True:
        try:
            report = Run(config).execute()
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert results(report) == results(read_json(finished_run / "report.json"))


@pytest.mark.slow
def test_killed_it_goes_on_and_ends_the_same(finished_run, tiny_collection, tmp_path):
    """kill -9 while extracting, while aligning and while HADA trains; each time the same command goes on."""
    folder = tmp_path / "run"
    config = write_config(tiny_collection, folder, tmp_path / "run.yaml")
    command = [sys.executable, "-m", "modalloy", "run", str(tmp_path / "run.yaml"), "--threads", "1"]
    for moment in (
        "features/vit-s14-focus@56/image",
        "inputs/2/checkpoints/*",
        "fits/hada-stage-1/seed-0/checkpoints/*",
    ):
        kill_at(command, folder, moment)
    assert not (folder / "report.json").exists()
    report = Run(config).execute()
    assert results(report) == results(read_json(finished_run / "report.json"))
    assert (folder / "report.html").exists()


def kill_at(command: list[str], folder: Path, pattern: str) -> None:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 120
        while not list(folder.glob(pattern)):
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline, f"{pattern} didn't appear"
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert process.returncode == -signal.SIGKILL
