from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from modalloy.encoders import load_encoder, registry
from modalloy.encoders.efficientnet_lite import EfficientNetLite
from modalloy.encoders.registry import absolute_spec, relative_spec
from modalloy.errors import ConfigError


@pytest.mark.parametrize(
    "spec",
    ["efficientnet-lite0", "efficientnet-lite0@128", "vit-s14-focus@56", "minilm", "minilm@32", "subwords"],
)
def test_a_spec_builds_the_encoder_of_that_spec(spec: str) -> None:
    assert load_encoder(spec).spec == spec


def test_the_option_of_a_spec_may_be_the_default() -> None:
    assert load_encoder("minilm@64").spec == "minilm"


def test_an_unknown_spec_lists_the_known_and_suggests() -> None:
    with pytest.raises(ConfigError, match=r"Unknown encoder 'minilmm'\. Did you mean 'minilm'\? Known: .*vit-s14"):
        load_encoder("minilmm")
    with pytest.raises(ConfigError, match=r"Unknown encoder 'CLIP:models/x'\. Did you mean 'clip'\?"):
        load_encoder("CLIP:models/x")
    with pytest.raises(ConfigError, match="Unknown encoder 'resnet:50'"):
        load_encoder("resnet:50")


@pytest.mark.parametrize("spec", ["minilm@", "minilm@x", "minilm@0", "minilm@-3", "minilm@1.5", "minilm@²"])
def test_an_option_must_be_a_number(spec: str) -> None:
    with pytest.raises(ConfigError, match="whole number after the @"):
        load_encoder(spec)


def test_entry_points_add_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    target = "modalloy.encoders.efficientnet_lite:EfficientNetLite"
    registered = EntryPoints([EntryPoint("kind", target, "modalloy.encoders")])
    monkeypatch.setattr(registry, "entry_points", lambda group: registered.select(group=group))
    monkeypatch.setattr(EfficientNetLite, "__init__", lambda self, argument: setattr(self, "spec", argument))
    assert load_encoder("kind:runs/a:b").spec == "runs/a:b"
    with pytest.raises(ConfigError, match="kind:<folder>"):
        load_encoder("kind")
    with pytest.raises(ConfigError, match=r"Did you mean 'kind'\?.*, kind \(docs"):
        load_encoder("kinds:x")


@pytest.mark.parametrize("option", ["", "@384"])
@pytest.mark.parametrize("kind", ["clip", "albef"])
def test_a_spec_s_path_moves_with_what_names_it(
    kind: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "some"
    path.mkdir() if kind == "clip" else path.write_text("x")
    monkeypatch.chdir(tmp_path)
    relative = relative_spec(f"{kind}:models/some{option}", Path("runs/x"))
    assert relative == f"{kind}:../../models/some{option}"
    (tmp_path / "runs" / "x").mkdir(parents=True)
    assert absolute_spec(relative, tmp_path / "runs" / "x") == f"{kind}:{path}{option}"
    for spec in ("minilm@32", "clip:openai/some", "clip:openai/some@main", "clip:"):
        assert relative_spec(spec, tmp_path) == absolute_spec(spec, tmp_path) == spec
