"""What can be wrong with a model's files, and where they come from."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from encoders.hub import models
from PIL import Image
from safetensors.torch import load_file, save_file

from modalloy.encoders import load_encoder
from modalloy.errors import CheckpointError, ConfigError

Draw = Callable[..., Image.Image]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.save_clip(tmp_path_factory.mktemp("clip") / "model")


@pytest.fixture
def clip(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "clip"))


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def _one_line(error: pytest.ExceptionInfo[Any]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_a_missing_model_offline_gives_one_clear_line(offline: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no folder 'openai/clip', and HF_HUB_OFFLINE is set, but .*hf download openai/clip\.$"
    ) as error:
        load_encoder("clip:openai/clip")
    _one_line(error)
    for name in ("models/none", "/none/such", "a/b/c", "clip model"):
        with pytest.raises(ConfigError, match=f"There is no folder '{name}'") as error:
            load_encoder(f"clip:{name}")
        _one_line(error)


def test_the_environment_variable_is_respected(tmp_path: Path) -> None:
    code = "from modalloy.encoders import load_encoder; load_encoder('clip:openai/clip-vit-base-patch32')"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    last = ended.stderr.strip().splitlines()[-1]
    assert "There is no folder 'openai/clip-vit-base-patch32', and HF_HUB_OFFLINE is set, but" in last


def _cache(cache: Path, folder: Path, commit: str = COMMIT, ref: str = "main") -> None:
    repository = cache / "models--tiny--clip"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / commit
    for made in (blobs, snapshot, repository / "refs"):
        made.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / ref).write_text(commit)
    for path in folder.iterdir():
        blob = blobs / f"{commit[:4]}-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))


def test_a_model_in_the_hub_s_cache_is_loaded_offline_and_pinned(offline: Path, saved: Path, picture: Draw) -> None:
    _cache(offline, saved)
    encoder, local = load_encoder("clip:tiny/clip"), load_encoder(f"clip:{saved}")
    assert (encoder.name, encoder.spec) == ("tiny/clip", "clip:tiny/clip")
    made = encoder.fingerprint("image")
    assert (made.name, made.revision) == ("clip:tiny/clip image", COMMIT)
    assert made.weights_sha256 == local.fingerprint("image").weights_sha256
    assert made.preprocessing_sha256 == local.fingerprint("image").preprocessing_sha256
    torch.testing.assert_close(encoder.encode_images([picture(0)]).tokens, local.encode_images([picture(0)]).tokens)


def test_a_branch_a_tag_or_a_commit_may_be_named(offline: Path, saved: Path, clip: Path) -> None:
    weights = load_file(clip / "model.safetensors")
    save_file({name: value * 2 for name, value in weights.items()}, clip / "model.safetensors", {"format": "pt"})
    _cache(offline, saved)
    _cache(offline, clip, OTHER, "next")
    main, branch = load_encoder("clip:tiny/clip"), load_encoder("clip:tiny/clip@next")
    assert branch.spec == "clip:tiny/clip@next"
    assert branch.fingerprint("text").revision == OTHER
    assert branch.fingerprint("text").weights_sha256 != main.fingerprint("text").weights_sha256
    assert load_encoder(f"clip:tiny/clip@{OTHER}").fingerprint("text") == branch.fingerprint("text")
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE is set.* of this name and revision.* --revision none"):
        load_encoder("clip:tiny/clip@none")


def test_loading_and_encoding_is_silent(clip: Path, capfd: pytest.CaptureFixture[str], picture: Draw) -> None:
    encoder = load_encoder(f"clip:{clip}")
    encoder.encode_images([picture(0)])
    encoder.encode_texts(["a dog " * 50])
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_weights(clip: Path) -> None:
    (clip / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        load_encoder(f"clip:{clip}")


def test_a_folder_without_a_configuration(clip: Path) -> None:
    (clip / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no readable config\.json") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)
    (clip / "config.json").write_text("{broken")
    with pytest.raises(CheckpointError, match=r"has no readable config\.json"):
        load_encoder(f"clip:{clip}")
    (clip / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="type 'unknown', but 'clip' takes 'clip'"):
        load_encoder(f"clip:{clip}")


def test_a_folder_without_a_tokenizer(clip: Path) -> None:
    for path in (*clip.glob("token*"), *clip.glob("vocab*"), *clip.glob("merges*"), *clip.glob("special*")):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"has no usable tokenizer .there is no vocabulary") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"])
def test_damaged_preprocessing(file: str, clip: Path) -> None:
    assert (clip / file).exists()
    (clip / file).write_text("{broken")
    with pytest.raises(CheckpointError, match=r"has no usable (tokenizer|picture processor)") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


def test_a_tokenizer_that_needs_another_package(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ImportError("needs the SentencePiece library\nbut it was not found")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(ConfigError, match=r"SentencePiece .*; install it: pip install sentencepiece protobuf") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


def test_a_folder_without_a_picture_processor(clip: Path) -> None:
    for path in (*clip.glob("preprocessor*"), *clip.glob("processor*")):
        path.unlink()
    with pytest.raises(CheckpointError, match="has no usable picture processor") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


def test_the_wrong_family(tmp_path: Path) -> None:
    folder = models.save_siglip(tmp_path / "model")
    with pytest.raises(ConfigError, match="holds a model of type 'siglip', but 'clip' takes 'clip'"):
        load_encoder(f"clip:{folder}")


def test_missing_weights_are_not_filled_at_random(clip: Path) -> None:
    weights = load_file(clip / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 weights of a CLIPModel, such as text_projection\.weight"):
        load_encoder(f"clip:{clip}")


def test_weights_of_another_shape(clip: Path) -> None:
    weights = load_file(clip / "model.safetensors")
    weights["text_projection.weight"] = torch.zeros(3, 3)
    save_file(weights, clip / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"text_projection|can't be loaded") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


@pytest.mark.parametrize("keep", [0, 5, 2000, -100])
def test_corrupt_safetensors(keep: int, clip: Path) -> None:
    path = clip / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="can't be loaded") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


def test_a_pickle_is_read_where_there_are_no_safetensors(clip: Path, picture: Draw) -> None:
    expected = load_encoder(f"clip:{clip}").encode_images([picture(0)])
    torch.save(load_file(clip / "model.safetensors"), clip / "pytorch_model.bin")
    preferred = load_encoder(f"clip:{clip}").fingerprint("image").weights_sha256
    (clip / "model.safetensors").unlink()
    encoder = load_encoder(f"clip:{clip}")
    assert encoder.fingerprint("image").weights_sha256 != preferred
    torch.testing.assert_close(encoder.encode_images([picture(0)]).tokens, expected.tokens)


class _Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused(clip: Path, tmp_path: Path) -> None:
    weights: dict[str, Any] = dict(load_file(clip / "model.safetensors"))
    (clip / "model.safetensors").unlink()
    torch.save({**weights, "evil": _Evil(f"touch {tmp_path / 'ran'}")}, clip / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="can't be loaded") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["clip", "mine"])
def test_code_that_comes_with_a_model_is_never_run(model_type: str, clip: Path, tmp_path: Path) -> None:
    (clip / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    for path, classes in (
        (clip / "config.json", {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine"}),
        (clip / "tokenizer_config.json", {"AutoTokenizer": ["mine.Mine", "mine.Mine"]}),
        (clip / "processor_config.json", {"AutoProcessor": "mine.Mine", "AutoImageProcessor": "mine.Mine"}),
    ):
        settings = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**settings, "auto_map": classes}))
    config = json.loads((clip / "config.json").read_text())
    (clip / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    try:
        load_encoder(f"clip:{clip}").encode_texts(["a dog"])
    except (ConfigError, CheckpointError):
        assert model_type == "mine"
    else:
        assert model_type == "clip"
    assert not (tmp_path / "ran").exists()


def test_a_copy_elsewhere_has_the_same_fingerprint(saved: Path, clip: Path) -> None:
    renamed = clip.rename(clip.parent / "model")
    for modality in ("image", "text"):
        found = load_encoder(f"clip:{renamed}").fingerprint(modality)  # type: ignore[arg-type]
        assert found == load_encoder(f"clip:{saved}").fingerprint(modality)  # type: ignore[arg-type]


def test_another_resize_or_another_vocabulary_changes_the_fingerprint(saved: Path, clip: Path) -> None:
    made = load_encoder(f"clip:{saved}")
    (path,) = [path for path in clip.glob("*processor*.json")]
    settings = json.loads(path.read_text())
    settings.get("image_processor", settings)["resample"] = 0
    path.write_text(json.dumps(settings))
    tokenizer = clip / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    other = load_encoder(f"clip:{clip}")
    for modality in ("image", "text"):
        one, two = made.fingerprint(modality), other.fingerprint(modality)  # type: ignore[arg-type]
        assert one.preprocessing_sha256 != two.preprocessing_sha256
        assert one.weights_sha256 == two.weights_sha256


def test_pictures_of_a_size_that_the_model_does_not_take(clip: Path) -> None:
    (path,) = [path for path in clip.glob("*processor*.json")]
    settings = json.loads(path.read_text())
    settings.get("image_processor", settings)["crop_size"] = {"height": 16, "width": 16}
    path.write_text(json.dumps(settings))
    with pytest.raises(
        CheckpointError, match=r"can't take .* of an image .*; its files don't belong together"
    ) as error:
        load_encoder(f"clip:{clip}").dim("image")
    _one_line(error)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_the_weights_do_not_tell_of_the_network_is_in_the_fingerprint(saved: Path, clip: Path) -> None:
    before = load_encoder(f"clip:{saved}")
    text = json.loads((clip / "config.json").read_text())["text_config"]
    _edit(clip / "config.json", transformers_version="5.0.0", dtype="float16", text_config={**text, "dtype": "float16"})
    clip = clip.rename(clip.with_name(saved.name))
    assert load_encoder(f"clip:{clip}").fingerprint("text") == before.fingerprint("text")
    _edit(clip / "config.json", text_config={**text, "hidden_act": "gelu"})
    after = load_encoder(f"clip:{clip}")
    assert not torch.allclose(after.encode_texts(["a dog"]).tokens, before.encode_texts(["a dog"]).tokens)
    assert after.fingerprint("text").weights_sha256 == before.fingerprint("text").weights_sha256
    assert after.fingerprint("text").preprocessing_sha256 != before.fingerprint("text").preprocessing_sha256


def test_a_folder_is_still_known_from_another_working_directory(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(clip.parent)
    encoder = load_encoder("clip:clip")
    monkeypatch.chdir("/")
    assert encoder.fingerprint("text") == load_encoder(f"clip:{clip}").fingerprint("text")


def test_a_folder_has_no_revision(clip: Path) -> None:
    with pytest.raises(ConfigError, match="is a folder, which has no revisions; leave out the @main"):
        load_encoder(f"clip:{clip}@main")


def test_an_adapter_is_refused_whether_or_not_peft_is_installed(clip: Path) -> None:
    (clip / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds an adapter beside its model .* save the whole model") as error:
        load_encoder(f"clip:{clip}")
    _one_line(error)


@pytest.mark.parametrize("value", ["someone/kernel", {"": "sdpa", "text_config": "someone/kernel@v1:attention"}])
def test_a_kernel_of_the_hub_is_refused(value: object, clip: Path) -> None:
    _edit(clip / "config.json", attn_implementation=value)
    with pytest.raises(ConfigError, match=r"needs code of the hub \(someone/kernel.*, which modalloy doesn't run"):
        load_encoder(f"clip:{clip}")
    _edit(clip / "config.json", attn_implementation="eager")
    load_encoder(f"clip:{clip}")


def test_a_connection_that_breaks_gives_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class ReadError(Exception):
        """As the hub's HTTP library raises it: no OSError, and without a message."""

    def break_off(*_: Any, **__: Any) -> str:
        raise ReadError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", break_off)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ConfigError, match=r"no folder 'tiny/clip', .* can't be had from the hub \(ReadError\)"):
        load_encoder("clip:tiny/clip")
