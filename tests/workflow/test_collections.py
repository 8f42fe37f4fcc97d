import json
import logging

import pytest
from tiny_run import IMAGES, TRUNCATED

from modalloy.data import demo_manifest
from modalloy.errors import DataError
from modalloy.workflow.collections import open_collection


def test_the_demo_comes_with_the_package():
    assert open_collection("demo").fingerprint == demo_manifest().fingerprint


def test_what_is_left_out_is_said(tiny_collection, caplog):
    with caplog.at_level(logging.INFO, "modalloy"):
        manifest = open_collection(tiny_collection)
    assert len(manifest) == sum(IMAGES.values()) + len(TRUNCATED)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("left out: garbage: ")
    assert f"test {IMAGES['test'] + 1} images" in caplog.text


def test_many_rejects_are_counted(tmp_path, caplog, tiny_manifest):
    good = tiny_manifest.absolute(tiny_manifest[0])
    rows = [
        {"path": str(good.name), "caption": "good"},
        *({"path": f"{n}.png", "caption": "missing"} for n in range(12)),
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with caplog.at_level(logging.WARNING, "modalloy"):
        assert len(open_collection(tmp_path / "rows.jsonl", images=good.parent)) == 1
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 11
    assert messages[-1] == "left out: 2 more; `modalloy doctor` lists all"


def test_a_folder_of_pictures_that_is_of_no_use_is_an_error(tmp_path, tiny_collection, tiny_manifest):
    with pytest.raises(DataError, match="leave out the image folder"):
        open_collection("demo", images=tmp_path)
    with pytest.raises(DataError, match=r"leave out the image folder .*--set images=null"):
        open_collection(tiny_collection / "images", images=tmp_path)
    tiny_manifest.save(tmp_path / "manifest.jsonl")
    for collection in (tmp_path / "manifest.jsonl", tiny_collection / "metadata.jsonl"):
        with pytest.raises(DataError, match=r"the image folder .*gone isn't there"):
            open_collection(collection, images=tmp_path / "gone")


def test_a_missing_collection_is_an_error(tmp_path):
    with pytest.raises(DataError, match="isn't there"):
        open_collection(tmp_path / "nowhere")
