"""Collections in the folder layout of HADA's authors."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hada_layout_files import write_layout


@pytest.fixture
def make_layout(tmp_path: Path) -> Callable[..., Path]:
    return lambda name="authors", **options: write_layout(tmp_path / name, **options)


@pytest.fixture
def layout(make_layout: Callable[..., Path]) -> Path:
    return make_layout()


@pytest.fixture
def small(make_layout: Callable[..., Path]) -> Path:
    """Five images, without augmented copies."""
    return make_layout("small", splits={"val": 5})
