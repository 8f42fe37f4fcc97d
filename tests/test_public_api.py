import inspect
import subprocess
import sys

import pytest

import modalloy


def test_about_a_dozen_names_are_public():
    assert list(modalloy.__all__) == sorted(modalloy.__all__)
    assert 10 <= len(modalloy.__all__) <= 15
    assert set(modalloy.__all__) <= set(dir(modalloy))


@pytest.mark.parametrize("name", modalloy.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert inspect.getdoc(getattr(modalloy, name))


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'modalloy' has no attribute 'Nothing'"):
        _ = modalloy.Nothing


def test_the_version_is_the_installed_one():
    assert modalloy.__version__.count(".") >= 1


def test_the_package_is_imported_without_what_takes_seconds():
    heavy = ["torch", "lightning", "transformers", "numpy", "rich"]
    code = f"import sys, modalloy; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
