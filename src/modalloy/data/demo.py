"""The collection that comes with modalloy: clip art of the Open Clip Art Library, in the public domain."""

from pathlib import Path

from modalloy.data.manifest import Manifest
from modalloy.errors import DataError

DEMO_FOLDER = Path(__file__).parent / "demo_set"


def demo_manifest() -> Manifest:
    """The demo set's manifest; `provenance.jsonl` beside it credits the authors.

    Raises:
        DataError: the installation lacks the demo set.
    """
    path = DEMO_FOLDER / "manifest.jsonl"
    if not path.is_file():
        raise DataError(f"the demo set is missing from this installation ({path}); install modalloy again.")
    return Manifest.load(path)
