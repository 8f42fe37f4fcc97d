"""import: every kind, by the command line, and the options that each takes."""

import json
from zipfile import ZipFile

import numpy as np
import original_hacan
import pytest
import torch
from hada_layout_files import write_layout
from original_hada import random_discriminator, random_state
from PIL import Image

from modalloy.cli.main import USER_MISTAKE, main
from modalloy.data import read_collection
from modalloy.encoders import load_encoder


def run(capsys, *arguments):
    assert main(["import", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return write_layout(tmp_path_factory.mktemp("layout"))


@pytest.fixture(scope="module")
def features(layout, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported") / "features"
    assert main(["import", "hada-features", str(layout), "--out", str(folder)]) == 0
    return folder


def test_features_of_hadas_authors(capsys, layout, features):
    result = run(capsys, "hada-features", layout, "--out", features)
    assert set(result["encoders"]) == {"albef", "dot"}
    assert main(["doctor", str(features / "manifest.jsonl"), "--json"]) == 0
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any("without their pictures" in problem["message"] for problem in problems)
    assert main(["import", "hada-features", str(layout), "--out", str(features)]) == 0
    assert "manifest.jsonl" in capsys.readouterr().out


def test_a_checkpoint_of_hada(capsys, features, tmp_path):
    inputs = [f"features:{features / name}" for name in ("albef", "dot")]
    checkpoint = {
        "epoch": 3,
        "img_encoder": random_state((6, 8), (4, 8), 5, 7, seed=1),
        "cap_encoder": random_state((6, 8), (4, 8), 5, 7, seed=2),
        "discriminator": random_discriminator(7),
        "temp_para": torch.tensor(0.05),
        "weight_albef": torch.tensor(0.4),
        "best_loss": 1.0,
    }
    torch.save(checkpoint, tmp_path / "best.pth.tar")
    made = run(capsys, "hada-checkpoint", tmp_path / "best.pth.tar", "--out", tmp_path / "alloy", "--inputs", *inputs)
    assert made["spec"] == f"alloy:{tmp_path / 'alloy'}" and made["inputs"] == inputs
    evaluated = ["evaluate", made["spec"], "--collection", str(features / "manifest.jsonl"), "--json"]
    assert main([*evaluated, "--features", str(tmp_path / "features")]) == 0
    assert json.loads(capsys.readouterr().out)["systems"]


def test_a_checkpoint_of_hacan(capsys, tmp_path):
    original_hacan.save_lightning(tmp_path / "last.ckpt", original_hacan.state_dict())
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(original_hacan.PIECES) + "\n")
    made = run(
        capsys,
        *("hacan-checkpoint", tmp_path / "last.ckpt", "--out", tmp_path / "run"),
        *("--tokenizer", tmp_path / "words", "--text-heads", 2),
    )
    assert made["spec"] == f"hacan:{tmp_path / 'run'}"
    assert load_encoder(made["spec"]).encode_texts(["a red phone"]).embedding.shape == (1, made["dim"])


def test_region_features(capsys, tiny_collection, tmp_path):
    random = np.random.default_rng(0)
    manifest, _ = read_collection(tiny_collection)
    for id in manifest.image_ids[1:]:
        boxes = np.array([[0, 0, 10, 10], [5, 5, 20, 20]], dtype=np.float32)
        features = random.standard_normal((2, 6)).astype(np.float32)
        np.savez(tmp_path / f"{id}.npz", features=features, boxes=boxes, image_w=20, image_h=20)
    out = tmp_path / "regions"
    result = run(capsys, "regions", tmp_path, "--collection", tiny_collection, "--out", out)
    assert result["rows"] == len(manifest) and result["rejects"] == 1
    assert result["spec"] == f"features:{out}"


def test_a_dataset(capsys, tmp_path):
    datasets = pytest.importorskip("datasets")
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    dataset = datasets.Dataset.from_dict({"image": pictures, "caption": ["red", "blue"]})
    dataset.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    capsys.readouterr()
    result = run(capsys, "dataset", tmp_path / "set", "--out", tmp_path / "pictures")
    assert result["counts"] == {"train": {"images": 2, "captions": 2}} and result["rejects"] == 0
    assert main(["doctor", str(tmp_path / "pictures")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["regions", "x", "--out", "y"], "needs --collection"),
        (["hada-checkpoint", "x", "--out", "y"], "needs --inputs"),
        (["dataset", "x", "--out", "y", "--lavis", "faithful"], "takes --config, --image, --caption, --revision"),
        (["hada-features", "nowhere", "--out", "y"], "nowhere"),
        (["hacan-checkpoint", "nowhere", "--out", "y"], "nowhere"),
        (["hada-features", "g.zip", "--out", "y"], "g.zip is no folder"),
        (["regions", "g.zip", "--collection", "demo", "--out", "y"], "g.zip is no folder"),
        (
            ["hacan-checkpoint", "g.zip", "--out", "y"],
            "g.zip isn't a PyTorch checkpoint, or is damaged; copy it again.",
        ),
        (["dataset", "g.zip", "--out", "y"], "g.zip is a file"),
        (["magic", "x", "--out", "y"], "magic"),
    ],
)
def test_mistakes_take_one_line(capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    with ZipFile("g.zip", "w") as archive:
        archive.writestr("1.txt", "A.")
    try:
        code = main(["import", *arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == USER_MISTAKE and out == ""
    (line,) = err.strip().splitlines()
    assert said in line


def test_help_groups_the_options_by_kind(capsys):
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    text = capsys.readouterr().out
    _, _, of_dataset = text.partition("options of dataset:")
    assert "--revision" in of_dataset and "--lavis" not in of_dataset
    assert "options of hada-features and regions:" in text
