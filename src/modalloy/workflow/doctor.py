"""Checking what a user has: a collection, a feature folder, or a whole run."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from modalloy.align import AlignedEncoder
from modalloy.data import Manifest, Problem, check_collection, demo_manifest, read_collection
from modalloy.encoders import Encoder, load_encoder
from modalloy.errors import CheckpointError, ModalloyError, one_line
from modalloy.features import FeatureStore
from modalloy.files import read_json
from modalloy.fusion.alloy import FORMAT as ALLOY_FORMAT
from modalloy.index.schema import COLUMNS, VECTOR
from modalloy.search import INDEX, Searcher
from modalloy.workflow.collections import DEMO, counts_line, unread_beside
from modalloy.workflow.config import features_folder, load_config
from modalloy.workflow.features import Collection

Result = TypeVar("Result")
_STORE_FOLDERS = ("", "augment-*/", "image/", "image/augment-*/", "text/", "*/image/", "*/image/augment-*/", "*/text/")
# A store that isn't finished has no manifest yet.
_STORES = tuple(folder + file for folder in _STORE_FOLDERS for file in ("manifest.json", "shard-*.safetensors"))


def examine(path: str | Path, images: str | Path | None = None) -> dict[str, Any]:
    """Checks a collection, features, a model or a run directory by what it finds there.

    Args:
        path: "demo", or a path; of a collection also a pattern such as "shards/{000..012}.tar".
        images: folder of a Karpathy JSON's pictures.

    Returns:
        `{"checked": [what was looked at], "problems": [{"severity": "error" or "warning", "item": id of the
        image or null, "message": what is wrong}]}`, each problem once.

    Raises:
        DataError: the path is no collection.
    """
    findings = _Findings()
    folder = Path(path)
    if str(path) == DEMO:
        findings.collection(path, images)
    elif (folder / "config.yaml").exists():
        _examine_run(folder, findings)
    elif (folder / "config.json").exists():
        config = read_json(folder / "config.json")
        is_alloy = isinstance(config, dict) and config.get("format") == ALLOY_FORMAT
        findings.encoder(f"{'alloy' if is_alloy else 'hacan'}:{folder}")
    elif stores := sorted({found.parent for pattern in _STORES for found in folder.glob(pattern)}):
        for store in stores:
            findings.features(store)
        if (folder / "manifest.jsonl").exists():
            # An import writes it beside its features.
            findings.collection(folder / "manifest.jsonl", images)
    else:
        findings.collection(path, images)
    return {"checked": findings.checked, "problems": list(map(asdict, dict.fromkeys(findings.problems)))}


def _examine_run(folder: Path, findings: "_Findings") -> None:
    config = load_config(folder / "config.yaml", {"folder": str(folder)})
    features = Collection(Manifest(folder, ()), features_folder(config), config.extraction)
    finished = (folder / "report.json").exists()

    def due(path: Path) -> bool:
        # What an unfinished run hasn't made yet is no problem of its own.
        return finished or path.exists()

    def stored(store: Path) -> None:
        if due(store / "manifest.json"):
            findings.features(store)

    for position, each in enumerate(config.inputs, start=1):
        aligned = folder / "inputs" / str(position)
        if each.encoder is None and not due(aligned):
            continue
        encoder = findings.encoder(each.encoder or f"hacan:{aligned}")
        if encoder is not None:
            # Stores that no input reads, left by an earlier configuration, don't matter.
            for modality in encoder.modalities:
                stored(features.folder(encoder, modality))
            for copy in range(features.copies(encoder)):
                stored(features.folder(encoder, "image", copy))
    if due(folder / "config.json"):
        findings.encoder(f"alloy:{folder}")
    if due(folder / INDEX):
        findings.check(f"index in {folder / INDEX}", lambda: _read_index(folder / INDEX))
    if not finished:
        command = f"modalloy run {folder / 'config.yaml'}"
        findings.error(f"{folder} isn't finished (no report.json); `{command}` goes on with it.")


def _read_index(folder: Path) -> None:
    """Reads all of an index.

    Raises:
        CheckpointError: a part of it can't be read, or it was made by another encoder.
    """
    try:
        for _ in Searcher.open(folder).snapshot.scan([*COLUMNS, *VECTOR.values()]):
            pass
    # LanceDB's errors for missing and damaged files.
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(
            f"it is damaged ({one_line(error)}); run the same command again to make it anew."
        ) from error


class _Findings:
    """What was looked at, and what is wrong with it."""

    def __init__(self) -> None:
        self.checked: list[str] = []
        self.problems: list[Problem] = []

    def collection(self, path: str | Path, images: str | Path | None) -> None:
        manifest, rejects = (demo_manifest(), []) if str(path) == DEMO else read_collection(path, images)
        self.checked.append(f"collection {path}: {counts_line(manifest)}")
        self.problems.extend(Problem("error", reject.id, f"left out: {reject.reason}") for reject in rejects)
        self.problems.extend(check_collection(manifest))
        self.problems.extend(Problem("warning", None, line) for line in unread_beside(path, images).lines())

    def features(self, folder: Path) -> None:
        def look() -> list[str]:
            store = FeatureStore.open(folder)
            problems = store.verify()
            if not problems:
                counts = f"{len(store):,} rows, {len(store.rejects()):,} rejected"
                self.checked[-1] += f": {store.spec} {store.modality}, {counts}"
            return problems

        for problem in self.check(f"features in {folder}", look) or []:
            self.error(problem)

    def encoder(self, spec: str) -> Encoder | None:
        """An encoder and, of an aligned one, the backbones that it was fitted on."""

        def load() -> Encoder:
            encoder = load_encoder(spec)
            if isinstance(encoder, AlignedEncoder):
                for modality in encoder.modalities:
                    encoder.backbone(modality)
            return encoder

        return self.check(f"encoder {spec}", load)

    def check(self, what: str, look: Callable[[], Result]) -> Result | None:
        self.checked.append(what)
        try:
            return look()
        except ModalloyError as error:
            self.error(f"{what}: {error}")
            return None

    def error(self, message: str) -> None:
        self.problems.append(Problem("error", None, message))
