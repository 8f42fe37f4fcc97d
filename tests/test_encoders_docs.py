"""The examples of docs/encoders.md, run as they stand there."""

import re
import runpy
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from encoders.hub import models
from PIL import Image

from modalloy.data.manifest import Item, Manifest
from modalloy.encoders import load_encoder, registry
from modalloy.encoders.check import check_encoder
from modalloy.encoders.mid import MID
from modalloy.features import extract
from modalloy.files import sha256_of

DOCS = (Path(__file__).parents[1] / "docs" / "encoders.md").read_text(encoding="utf-8")


def _example(name: str) -> str:
    """The block that stands below the paragraph which names the file `name`."""
    found = re.search(rf"`{re.escape(name)}`.*?```\w+\n(.*?)```", DOCS, re.DOTALL)
    assert found, name
    return found[1]


def _install(folder: Path, module: str, registered: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Writes what pip would: the module, and the metadata that importlib finds along sys.path."""
    (folder / f"{module}.py").write_text(_example(f"{module}.py"))
    metadata = folder / f"{module}-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    lines = [f"{kind} = {target}" for kind, target in registered.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[modalloy.encoders]", *lines]))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, module, raising=False)


def test_the_example_of_an_encoder_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len([line for line in _example("modalloy_colours.py").splitlines() if line.strip()]) <= 35
    toml = tomllib.loads(_example("pyproject.toml"))
    project = toml["project"]
    # Of several modules in one folder setuptools takes none by itself.
    assert toml["tool"]["setuptools"]["py-modules"] == ["modalloy_colours"]
    _install(tmp_path, "modalloy_colours", project["entry-points"]["modalloy.encoders"], monkeypatch)
    (tmp_path / "test_example.py").write_text(_example("test_modalloy_colours.py"))
    runpy.run_path(str(tmp_path / "test_example.py"))["test_colours_keep_the_contract"]()

    items = []
    for name in ("red", "blue", "grey"):
        Image.new("RGB", (30, 20), name).save(tmp_path / f"{name}.png")
        items.append(Item(name, f"{name}.png", sha256_of(tmp_path / f"{name}.png"), "test", (f"all {name}",)))
    encoder = load_encoder("colours:4")
    store = extract(encoder, "image", Manifest(tmp_path, tuple(items)), tmp_path / "features", progress=False)
    # Red is in the highest shade of red and the lowest of green and blue.
    expected = torch.tensor([0, 0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0]) / 3**0.5
    torch.testing.assert_close(store.embeddings()[0], expected)
    assert store.valid.all() and list(store.ids) == ["red", "blue", "grey"]
    assert store.fingerprint == encoder.fingerprint("image")


def test_the_example_of_a_hub_family_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _install(tmp_path, "modalloy_swin", {"swin": "modalloy_swin:Swin"}, monkeypatch)
    config = transformers.SwinConfig(
        image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4
    )
    folder = models.save(tmp_path / "model", transformers.SwinModel, config, None, models.clip_pictures(), 0)
    check_encoder(load_encoder(f"swin:{folder}"))


def test_the_example_of_training_a_backbone_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = re.search(r"### Backbones that are trained further.*?```python\n(.*?)```", DOCS, re.DOTALL)
    assert found
    made: dict[str, Any] = {}
    exec(found[1], made)
    assert made["tuned"].spec == f"tuned:{tmp_path / 'runs' / 'x' / 'text'}"
    gradients = [parameter.grad for parameter in made["network"].parameters()]
    assert all(gradient is not None for gradient in gradients)


def test_every_kind_is_documented() -> None:
    kinds = [*registry._BUILT_IN, *registry._HUB, "hacan", "alloy", "features", registry.TUNED, MID]
    assert not [kind for kind in kinds if f"`{kind}`" not in DOCS]


def test_every_documented_spec_is_known() -> None:
    named = (each.name for each in registry.entry_points(group=registry._GROUP))
    known = {*registry._BUILT_IN, *registry._HUB, *named, registry.TUNED, MID}
    rows = re.findall(r"^\| `[^|]*\|[^|]*\|[^|]*\|$", DOCS, re.MULTILINE)
    specs = [spec for row in rows for spec in re.findall(r"`([\w-]+):[^`]+`", row)]
    assert len(specs) > 15
    assert set(specs) <= known
