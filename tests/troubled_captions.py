"""Captions one of which brings trouble where it is loaded; importable, so that spawned processes find it."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

from modalloy.data.manifest import Manifest
from modalloy.features.sources import Captions


class TroubledCaptions(Captions):
    """Calls `trouble` with `marker` in the process that loads the caption `row`, unless `marker` exists."""

    def __init__(self, manifest: Manifest, row: int, marker: Path, trouble: Callable[[Path], None]) -> None:
        super().__init__(manifest)
        self._row, self._marker, self._trouble = row, marker, trouble

    def load(self, row: int) -> str:
        if row == self._row and not self._marker.exists():
            self._trouble(self._marker)
        return super().load(row)


def kill(marker: Path) -> None:
    """Kills the process, once."""
    marker.touch()
    os.kill(os.getpid(), signal.SIGKILL)


def lack_memory(marker: Path) -> None:
    raise MemoryError
