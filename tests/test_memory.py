import os
import platform
import subprocess
import sys

import pytest

from modalloy.memory import keep_freed_memory

# Counts the page faults of a net's forward passes, once it has grown to its peak.
_FAULTS = """
import resource, torch
from modalloy.memory import keep_freed_memory
if {kept}: keep_freed_memory()
torch.set_num_threads(1)
images, filters = torch.ones(16, 8, 112, 112), torch.ones(8, 8, 3, 3)
def forward():
    values = images
    for _ in range(4): values = torch.relu(torch.conv2d(values, filters, padding=1))
for _ in range(20): forward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5): forward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(kept: bool) -> int:
    code = _FAULTS.format(kept=kept)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env={**os.environ}
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_freed_memory_is_reused():
    assert _faults(kept=True) * 2 < _faults(kept=False)


def test_elsewhere_it_changes_nothing(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
