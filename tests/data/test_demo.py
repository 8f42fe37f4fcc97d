import pytest

from modalloy.data import demo
from modalloy.data.manifest import Item, Manifest
from modalloy.errors import DataError


def test_loads_the_manifest_beside_its_images(tmp_path, monkeypatch):
    manifest = Manifest(tmp_path, (Item("cat", "images/cat.png", "0" * 64, "test", ("A cat.",)),))
    manifest.save(tmp_path / "manifest.jsonl")
    monkeypatch.setattr(demo, "DEMO_FOLDER", tmp_path)
    assert demo.demo_manifest() == manifest


def test_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "DEMO_FOLDER", tmp_path)
    with pytest.raises(DataError, match="demo set is missing from this installation"):
        demo.demo_manifest()
