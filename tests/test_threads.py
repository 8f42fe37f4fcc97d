import os

import pytest
import torch

from modalloy.errors import ConfigError
from modalloy.threads import default_threads, set_threads


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No variable set, and PyTorch's own count put back afterwards."""
    for name in ("MODALLOY_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("modalloy", "omp", "threads"),
    [("3", None, 3), ("3", "5", 3), (None, "5", 5), ("", "5", 5), (None, "4,2", 4), (" 2 ", None, 2)],
)
def test_variables(monkeypatch, modalloy, omp, threads):
    for name, value in (("MODALLOY_THREADS", modalloy), ("OMP_NUM_THREADS", omp)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert default_threads() == threads


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "²"])
@pytest.mark.parametrize("name", ["MODALLOY_THREADS", "OMP_NUM_THREADS"])
def test_bad_variable_is_named(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"{name} must be a positive whole number, got '{value}'"):
        default_threads()


@pytest.mark.parametrize(("load", "threads"), [(0.0, 8), (0.4, 8), (3.0, 5), (7.6, 1), (50.0, 1)])
def test_busy_cores_are_left_alone(monkeypatch, load, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    assert default_threads() == threads


def test_without_the_calls_of_linux(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "getloadavg", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert default_threads() == 6


def test_set_threads(monkeypatch):
    assert set_threads(2) == torch.get_num_threads() == 2
    monkeypatch.setenv("MODALLOY_THREADS", "1")
    assert set_threads() == torch.get_num_threads() == 1


@pytest.mark.parametrize("threads", [0, -3])
def test_too_few(threads):
    with pytest.raises(ConfigError, match=f"at least 1, got {threads}"):
        set_threads(threads)
