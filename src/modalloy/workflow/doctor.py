"""Checking what a user has: a collection, a feature folder, or a whole run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modalloy.data import check_collection
from modalloy.encoders import load_encoder
from modalloy.errors import ModalloyError
from modalloy.features import FeatureStore
from modalloy.search import Searcher
from modalloy.workflow.collections import DEMO, open_collection


def examine(path: str | Path, images: str | Path | None = None) -> dict[str, Any]:
    """Checks a collection, a feature folder or a run directory by what it finds there.

    Args:
        path: "demo", or a path.
        images: folder of a Karpathy JSON's pictures.

    Returns:
        `{"checked": [what was looked at], "problems": [what is wrong]}`.

    Raises:
        DataError: the path is no collection.
    """
    found = _Findings()
    folder = Path(path)
    if str(path) != DEMO and (folder / "config.yaml").exists():
        for store in sorted(folder.glob("features/*/*/manifest.json")):
            found.check(f"features in {store.parent}", lambda store=store: FeatureStore.open(store.parent).verify())
        if (folder / "config.json").exists():
            found.check(f"alloy in {folder}", lambda: load_encoder(f"alloy:{folder}"))
        if (folder / "gallery").exists():
            found.check(f"galleries in {folder / 'gallery'}", lambda: Searcher.open(folder / "gallery"))
    elif str(path) != DEMO and (folder / "manifest.json").exists():
        found.check(f"features in {folder}", lambda: FeatureStore.open(folder).verify())
    else:
        manifest = open_collection(path, images)
        found.checked.append(f"collection {path}: {manifest.counts()}")
        found.problems.extend(str(problem) for problem in check_collection(manifest))
    return {"checked": found.checked, "problems": found.problems}


class _Findings:
    def __init__(self) -> None:
        self.checked: list[str] = []
        self.problems: list[str] = []

    def check(self, what: str, look: Callable[[], Any]) -> None:
        self.checked.append(what)
        try:
            look()
        except ModalloyError as error:
            self.problems.append(f"{what}: {error}")
