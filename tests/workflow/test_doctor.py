import json
import os
import shutil

import pytest
from index.small_source import write_picture
from tiny_run import TRUNCATED

from modalloy.data import read_collection
from modalloy.errors import DataError
from modalloy.features import FeatureStore
from modalloy.workflow.doctor import examine


def messages(path, severity="error"):
    """What is wrong, as one text a problem."""
    found = [problem for problem in examine(path)["problems"] if problem["severity"] == severity]
    return [": ".join(filter(None, (problem["item"], problem["message"]))) for problem in found]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def flip_last_byte(path):
    """Damage that leaves the size as it was."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def test_a_whole_run_has_no_problems(finished_run):
    found = examine(finished_run)
    assert found["problems"] == []
    checked = " ".join(found["checked"])
    assert all(part in checked for part in (" text, ", " rows, 0 rejected", " image, ", " rows, 2 rejected"))
    assert all(part in checked for part in ("inputs/1", "inputs/2", "features/hacan-", "alloy:", "index in"))


def test_the_demo_has_no_problems():
    assert examine("demo")["problems"] == []


def test_what_is_passed_over_is_a_warning(tmp_path):
    write_picture(tmp_path / "a.png", 0, ["A."])
    (tmp_path / "b.heic").touch()
    (warning,) = (text for text in messages(tmp_path, "warning") if "passed over" in text)
    assert warning.startswith(f"passed over in {tmp_path}: 1 .heic (")
    assert messages(tmp_path) == []


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("features/minilm/text/shard-*", flip_last_byte),
        ("features/hacan-*/image/shard-*", truncate),
        ("model.safetensors", flip_last_byte),
        ("inputs/1/model.safetensors", truncate),
    ],
)
def test_damaged_files_of_a_run_are_named(run_copy, pattern, damage):
    damaged = next(iter(sorted(run_copy.glob(pattern))))
    damage(damaged)
    problems = messages(run_copy)
    assert problems and all("\n" not in problem for problem in problems)
    # Features that others are derived from are named by way of these: features/x/../minilm.
    assert any(str(damaged) in os.path.normpath(word.strip(";:.")) for problem in problems for word in problem.split())
    assert len(set(problems)) == len(problems)


@pytest.mark.parametrize("pattern", ["head.lance/data/*.lance", "items*/data/*.lance", "items*/_versions/*"])
def test_a_damaged_index_is_named(run_copy, pattern):
    for path in (run_copy / "index").glob(pattern):
        truncate(path)
    (problem,) = messages(run_copy)
    assert "index" in problem and "damaged" in problem


def test_an_unfinished_run_is_named(run_copy):
    (run_copy / "report.json").unlink()
    shutil.rmtree(run_copy / "inputs" / "2")
    shutil.rmtree(run_copy / "index")
    (run_copy / "config.json").unlink()
    (problem,) = messages(run_copy)
    assert "isn't finished (no report.json)" in problem and f"modalloy run {run_copy / 'config.yaml'}" in problem
    # But what is there must be whole.
    truncate(run_copy / "inputs" / "1" / "model.safetensors")
    assert any("inputs/1" in problem for problem in messages(run_copy))


def test_features_that_no_input_reads_do_not_matter(run_copy):
    stale = shutil.copytree(run_copy / "features" / "minilm", run_copy / "features" / "hacan-0123")
    truncate(stale / "text" / "shard-00000.safetensors")
    assert examine(run_copy)["problems"] == []


def test_a_feature_folder_is_checked_alone_or_with_others(run_copy):
    folder = run_copy / "features" / "minilm" / "text"
    rows = len(FeatureStore.open(folder))
    looked_at = f"features in {folder}: minilm text, {rows:,} rows, 0 rejected"
    assert examine(folder) == {"checked": [looked_at], "problems": []}
    flip_last_byte(folder / "shard-00000.safetensors")
    (problem,) = messages(folder)
    assert "shard-00000.safetensors doesn't match its checksum" in problem
    everything = examine(run_copy / "features")
    stores = sorted(manifest.parent for manifest in (run_copy / "features").glob("*/*/manifest.json"))
    assert sorted(line.split(": ")[0] for line in everything["checked"]) == [f"features in {each}" for each in stores]
    assert {"severity": "error", "item": None, "message": problem} in everything["problems"]


def test_an_encoders_folder_and_a_store_that_is_not_finished_are_known(run_copy):
    folder = run_copy / "features" / "minilm"
    assert [line.split(": ")[0] for line in examine(folder)["checked"]] == [f"features in {folder / 'text'}"]
    assert examine(folder)["problems"] == []
    (folder / "text" / "manifest.json").unlink()
    for path in (folder, folder / "text", run_copy / "features"):
        (problem,) = [each for each in messages(path) if each.startswith(f"features in {folder / 'text'}")]
        assert "holds no finished features" in problem


def test_what_an_import_wrote_is_checked_with_its_collection(tiny_collection, run_copy, tmp_path):
    shutil.copytree(run_copy / "features" / "minilm", tmp_path / "imported" / "minilm")
    manifest, _ = read_collection(tiny_collection)
    manifest.save(tmp_path / "imported" / "manifest.jsonl")
    checked = examine(tmp_path / "imported")["checked"]
    assert [line.split(" in ")[0].split(":")[0] for line in checked] == [
        "features",
        f"collection {tmp_path / 'imported' / 'manifest.jsonl'}",
    ]


@pytest.mark.parametrize("part", ["inputs/1", "."])
def test_a_model_alone_is_checked(run_copy, part):
    folder = run_copy / part
    (folder / "config.yaml").unlink(missing_ok=True)
    assert examine(folder)["problems"] == []
    (folder / "model.safetensors").unlink()
    (problem,) = messages(folder)
    assert str(folder.resolve()) in problem


def test_a_checkpoint_that_is_not_ours_is_named(run_copy):
    (run_copy / "config.json").write_text(json.dumps({"model_type": "clip"}))
    (problem,) = [each for each in messages(run_copy) if each.startswith("encoder")]
    assert "modalloy-alloy-1" in problem


def test_what_is_wrong_with_a_collection_is_listed(tiny_collection, tmp_path):
    folder = shutil.copytree(tiny_collection, tmp_path / "collection")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    train, test = rows[0], rows[-1]
    assert (train["split"], test["split"]) == ("train", "test")
    shutil.copy(folder / train["path"], folder / "images" / "twin.webp")
    rows.append({"id": "twin", "path": "images/twin.webp", "split": "test", "captions": ["a twin", " "]})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / test["path"]).unlink()
    problems = messages(folder)
    expected = ["garbage: left out: ", "twin: left out: caption 2 of 2 is blank", f"{test['id']}: left out: "]
    expected += [f"{name}: {folder}" for name in TRUNCATED]
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), start
    assert any("the same picture is in another split too" in problem for problem in problems)


def test_a_path_that_is_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="isn't there"):
        examine(tmp_path / "nowhere")


def test_what_was_looked_at_and_what_may_mislead_is_told_apart(tmp_path, tiny_collection):
    (checked,) = examine(tiny_collection)["checked"]
    assert checked.startswith(f"collection {tiny_collection}: train ") and "{" not in checked
    folder = shutil.copytree(tiny_collection, tmp_path / "collection")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[0]["captions"] = ["word " * 60]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (problem,) = messages(folder, "warning")
    assert problem.startswith(f"{rows[0]['id']}: caption 0 has 60 words")
