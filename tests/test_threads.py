import os

import pytest
import torch

import modalloy.threads
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


def stat(monkeypatch, tmp_path, *, busy: int, idle: int) -> None:
    """Lets so many ticks pass between two looks at /proc/stat."""
    path = tmp_path / "stat"
    path.write_text("cpu 100 0 50 1000 5 0 0 0 7 7\ncpu0 1 1 1 1\n")

    def pass_time(seconds: float) -> None:
        path.write_text(f"cpu {100 + busy} 0 50 {1000 + idle} 5 0 0 0 7 7\ncpu0 1 1 1 1\n")

    monkeypatch.setattr(modalloy.threads, "_PROCESSOR_TIMES", path)
    monkeypatch.setattr(modalloy.threads.time, "sleep", pass_time)


@pytest.mark.parametrize(
    ("busy", "idle", "threads"), [(0, 80, 8), (4, 76, 8), (30, 50, 5), (76, 4, 1), (80, 0, 1), (0, 0, 8)]
)
def test_busy_cores_are_left_alone(monkeypatch, tmp_path, busy, idle, threads):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    stat(monkeypatch, tmp_path, busy=busy, idle=idle)
    assert default_threads() == threads


def test_without_the_calls_of_linux(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(modalloy.threads, "_PROCESSOR_TIMES", tmp_path / "missing")
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
