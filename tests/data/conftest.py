"""Small collections made on the spot."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small picture of its own colour under tmp_path and returns its path."""
    made = 0

    def write(name: str) -> Path:
        nonlocal made
        made += 1
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (made, 0, 0)).save(path)
        return path

    return write
