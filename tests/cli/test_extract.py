"""--dry-run of modalloy extract: the disk and the time an extraction will take."""

import json
import shutil

import pytest

from modalloy.cli.extract import WONT_FIT
from modalloy.cli.main import main
from modalloy.features import estimate


@pytest.fixture
def dry_run(capsys, tiny_collection, run_copy):
    def run(*arguments):
        options = ["--collection", str(tiny_collection), "--features", str(run_copy / "features"), "--dry-run"]
        code = main(["extract", *map(str, arguments), *options])
        return code, capsys.readouterr().out

    return run


def test_tells_what_is_there_and_what_it_will_take(dry_run, run_copy, tiny_manifest):
    folder = run_copy / "features" / "subwords"
    disk = sum(path.stat().st_size for path in (folder / "text").iterdir())
    shutil.rmtree(folder)
    code, out = dry_run("subwords", "efficientnet-lite0@64", "--json")
    planned = json.loads(out)
    text, image = planned["stores"]
    assert code == 0 and planned["disk"]["fits"] and planned["disk"]["needed"] == text["bytes"]
    assert (text["encoder"], text["rows"], text["stored"]) == ("subwords", len(tiny_manifest.captions), 0)
    assert text["bytes"] == pytest.approx(disk, rel=0.1) and text["seconds"] > 0
    assert (image["stored"], image["bytes"], image["seconds"]) == (len(tiny_manifest), 0, 0)
    assert not folder.exists()


def test_counts_what_an_encoder_is_made_of_once(dry_run, run_copy, tiny_manifest):
    for folder in (run_copy / "features").glob("hacan-*"):
        shutil.rmtree(folder)
    first = f"hacan:{run_copy / 'inputs' / '1'}"
    planned = json.loads(dry_run(first, f"alloy:{run_copy}", "minilm", "--json")[1])["stores"]
    names = [(store["encoder"].partition(":")[0], store["modality"]) for store in planned]
    assert sorted(names) == sorted(
        [
            *[(name, modality) for name in ("hacan", "hacan", "alloy") for modality in ("image", "text")],
            ("efficientnet-lite0@64", "image"),
            ("vit-s14-focus@56", "image"),
            ("minilm", "text"),
            ("subwords", "text"),
        ]
    )
    bytes_of = {(store["encoder"], store["modality"]): store["bytes"] for store in planned}
    # 16 float32 numbers, a flag, and a share of the header and the ids.
    assert 65 <= bytes_of[first, "text"] / len(tiny_manifest.captions) < 110
    assert bytes_of["minilm", "text"] == 0


def test_counts_augmented_copies(dry_run, tiny_manifest):
    code, out = dry_run("efficientnet-lite0@64", "--extraction.augmentations", "2", "--json")
    rows = [(store["rows"], store["stored"]) for store in json.loads(out)["stores"]]
    assert code == 0 and rows == [
        (len(tiny_manifest), len(tiny_manifest)),
        *[(len(tiny_manifest.split("train")), 0)] * 2,
    ]


def test_warns_of_a_disk_that_is_too_small(dry_run, run_copy, monkeypatch):
    shutil.rmtree(run_copy / "features" / "subwords")
    code, out = dry_run("subwords")
    assert code == 0 and "free." in out
    monkeypatch.setattr(estimate, "free_bytes", lambda folder: 1000)
    code, out = dry_run("subwords")
    assert code == WONT_FIT and "to take, 1.0 kB free: it won't fit" in out
