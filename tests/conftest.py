"""Checks every array's shape and type against its annotation while the tests run."""

import sys
from pathlib import Path

from hypothesis import settings
from jaxtyping import install_import_hook

# Before the first import of modalloy, which is what the hook acts on.
sys.path.insert(0, str(Path(__file__).parent))
install_import_hook("modalloy", "shape_checker.check")

# A shared machine may stall at any example.
settings.register_profile("modalloy", deadline=None, print_blob=True)
settings.load_profile("modalloy")

# A finished run takes seconds, so that one serves several folders of tests.
pytest_plugins = ["tiny_run"]
