"""The configurations that come with the project: each is read, and the README's second example is run."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from encoders.hub import models
from hada_layout_files import write_layout

from modalloy import Alloy
from modalloy.cli.main import _parser
from modalloy.files import read_json
from modalloy.interop.hada_features import import_hada_features
from modalloy.search import Searcher
from modalloy.training.align_config import AlignConfig, LocalBranchConfig
from modalloy.training.fusion_training import FusionTraining
from modalloy.workflow.config import load_config
from modalloy.workflow.run import Run

CONFIGS = Path(__file__).parent.parent / "configs"
EXAMPLE = CONFIGS / "clip-siglip.yaml"


HACAN = sorted((CONFIGS / "hacan").glob("*.yaml"))
# Read by scripts/hacan_experiments.py.
EXPERIMENTS = CONFIGS / "flickr8k" / "hacan.yaml"


@pytest.mark.parametrize("path", HACAN, ids=lambda path: path.stem)
def test_hacans_settings_are_those_of_its_code_and_open_with_their_commands(path):
    text = path.read_text()
    for command in (f"--align {path.relative_to(CONFIGS.parent).as_posix()}", "modalloy evaluate hacan:"):
        assert command in text
    options = ["align", "a", "b", "--collection", "c", "--out", "o", "--align", str(path)]
    parser = _parser(options)
    config = parser.instantiate(parser.parse_args(options))["align"].align
    direction = {"flickr30k": "t2i", "coco": "i2t"}[path.stem]
    published = AlignConfig.hacan(local=LocalBranchConfig(dim=768, direction=direction))
    assert config == published


@pytest.mark.parametrize("path", sorted({*CONFIGS.rglob("*.yaml")} - {*HACAN, EXPERIMENTS}), ids=lambda path: path.stem)
def test_every_configuration_is_read_and_opens_with_the_command_that_runs_it(path):
    load_config(path)
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    command = next(line for line in comment if "modalloy run" in line)
    assert path.relative_to(CONFIGS.parent).as_posix() in command


@pytest.mark.slow
def test_clip_and_siglip_are_amalgamated_by_the_example(tiny_collection, tmp_path):
    """The same file on tiny models with random weights, of which the hub's loader can't tell that they are tiny."""
    clip, siglip = models.save_clip(tmp_path / "clip"), models.save_siglip(tmp_path / "siglip")
    config = load_config(
        EXAMPLE,
        {
            "collection": str(tiny_collection),
            "images": None,
            "folder": str(tmp_path / "run"),
            "inputs.0.encoder": f"clip:{clip}",
            "inputs.1.encoder": f"siglip:{siglip}",
            "seeds": [0],
            "fusion.first_stage.epochs": 2,
            "fusion.second_stage.epochs": 1,
        },
    )
    report = Run(config).execute()
    assert report == read_json(tmp_path / "run" / "report.json")
    names = [each["name"] for each in yaml.safe_load(EXAMPLE.read_text())["inputs"]]
    assert {*names, "HADA stage 1", "HADA stage 2", "validation-tuned weighted cosine"} <= set(report["systems"])
    searcher = Searcher.open(tmp_path / "run" / "index")
    assert len(searcher.by_text("a red telephone", k=5)) == 5


PAPER = FusionTraining(
    epochs=50,
    all_captions=True,
    batch_size=20,
    learning_rate=1e-4,
    final_learning_rate=5e-6,
    weight_decay=0.02,
    temperature=0.07,
    momentum=0.995,
    queue_size=64000,
    distillation=0.4,
    patience=20,
    augment_probability=0.75,
)


@pytest.mark.parametrize("path", sorted((CONFIGS / "hada").glob("*.yaml")), ids=lambda path: path.stem)
def test_hada_is_trained_as_in_the_paper(path):
    config = load_config(path)
    towers, fusion = config.fusion.towers, config.fusion
    assert (towers.method, towers.token_dim, towers.heads, towers.output_dim) == ("hada", 512, 4, 512)
    assert (towers.dropout, towers.start, fusion.weighted_inputs) == (0.7, "random", "best")
    assert fusion.first_stage == PAPER
    assert fusion.second_stage == replace(PAPER, learning_rate=5e-5, similarity_learning_rate=5e-5, patience=5)
    assert config.extraction.augmentations == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hada", "hada-original"])
def test_the_authors_features_are_fused_by_their_configuration(method, tmp_path):
    features = tmp_path / "features"
    import_hada_features(write_layout(tmp_path / "authors"), features, progress=False)
    small = {"epochs": 1, "batch_size": 4}
    overrides = {
        "collection": str(features / "manifest.jsonl"),
        "folder": str(tmp_path / "run"),
        "inputs.0.encoder": f"features:{features / 'albef'}",
        "inputs.1.encoder": f"features:{features / 'dot'}",
        "seeds": [0],
        "fusion.towers.method": method,
        "fusion.towers.token_dim": 8,
        "fusion.towers.output_dim": 16,
        **{f"fusion.{stage}.{key}": value for stage in ("first_stage", "second_stage") for key, value in small.items()},
    }
    run = Run(load_config(CONFIGS / "hada" / "flickr30k-albef-dot.yaml", overrides))
    report = run.execute()
    assert {"ALBEF", "LightningDOT", "HADA stage 1", "HADA stage 2"} <= set(report["systems"])
    assert [len(copies) for copies in run.fits.features.image.augmented] == [3, 0]
    assert run.delivered.fuser.config.method == method
    assert run.delivered.fuser.config.weighted_inputs in ((0,), (1,))
    loaded = Alloy.from_pretrained(tmp_path / "run")
    assert loaded.fingerprint("image") == Alloy(run.encoders, run.delivered.fuser, "x").fingerprint("image")
    assert Searcher.open(tmp_path / "run" / "index")
