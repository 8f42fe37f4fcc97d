"""modalloy import"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.table import Table
from rich.text import Text

from modalloy.cli.verb import Verb
from modalloy.errors import ConfigError


def _hada_features(options: Namespace) -> dict[str, Any]:
    from modalloy.interop.hada_features import import_hada_features

    return import_hada_features(
        options.source, options.out, collection=options.name or "flickr30k", images=options.images
    )


def _hada_checkpoint(options: Namespace) -> dict[str, Any]:
    from modalloy.interop.hada_checkpoint import import_hada_checkpoint

    given = {key: options[key] for key in ("lavis", "mean", "std", "name") if options[key] is not None}
    return import_hada_checkpoint(options.source, options.inputs, options.out, **given).summary()


def _hacan_checkpoint(options: Namespace) -> dict[str, Any]:
    from modalloy.interop.hacan_checkpoint import import_hacan_checkpoint

    given = {key: options[key] for key in ("tokenizer", "name", "text_heads") if options[key] is not None}
    encoder = import_hacan_checkpoint(options.source, options.out, **given)
    return {
        "spec": encoder.spec,
        "name": encoder.name,
        "backbones": {modality: backbone.spec for modality, backbone in encoder.backbones.items()},
        "dim": encoder.dim("image"),
    }


def _regions(options: Namespace) -> dict[str, Any]:
    from modalloy.interop.regions import import_regions
    from modalloy.workflow.collections import open_collection

    return import_regions(options.source, options.out, open_collection(options.collection, options.images))


def _dataset(options: Namespace) -> dict[str, Any]:
    from modalloy.data.hf_dataset import import_dataset

    given = {key: options[key] for key in ("config", "image", "caption", "revision")}
    manifest, rejects = import_dataset(options.source, options.out, **given)
    return {"collection": options.out, "counts": manifest.counts(), "rejects": len(rejects)}


@dataclass(frozen=True)
class _Kind:
    """One kind of thing that can be imported."""

    what: str
    run: Callable[[Namespace], dict[str, Any]]
    takes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


_KINDS = {
    "hada-features": _Kind(
        "the features that HADA's authors publish, by their folder layout", _hada_features, ("name", "images")
    ),
    "hada-checkpoint": _Kind(
        "HADA's best.pth.tar: stage 1, stage 2, B2 or LAVIS",
        _hada_checkpoint,
        ("inputs", "lavis", "mean", "std", "name"),
        ("inputs",),
    ),
    "hacan-checkpoint": _Kind("HACAN's Lightning checkpoint", _hacan_checkpoint, ("tokenizer", "text_heads", "name")),
    "regions": _Kind(
        "a folder of region features, <image id>.npz with boxes", _regions, ("collection", "images"), ("collection",)
    ),
    "dataset": _Kind(
        "a Hugging Face dataset, local or of the hub", _dataset, ("config", "image", "caption", "revision")
    ),
}

_OPTIONS: dict[str, tuple[Any, str]] = {
    "name": (str | None, "name of the model for tables, or of the collection's folder (flickr30k)"),
    "images": (str | None, "folder of the pictures"),
    "inputs": (str, "specs of the encoders that the checkpoint was trained on, in its order"),
    "lavis": (str | None, '"repaired" (default), or "faithful" with its mix-up of the tokens'),
    "mean": (float | None, "taken off the unit-norm tokens and embeddings; default: the published one"),
    "std": (float | None, "divides them then; default: the published one"),
    "tokenizer": (str | None, "folder or hub name of the tokenizer; default: bert-base-uncased"),
    "text_heads": (int | None, "attention heads of its BERT, where they aren't 64 wide"),
    "collection": (str | None, "the collection that the region features are of"),
    "config": (str | None, "configuration of the dataset, where it has several"),
    "image": (str | None, "column of the pictures"),
    "caption": (str | None, "column of the captions"),
    "revision": (str | None, "branch, tag or commit on the hub"),
}


class Import(Verb):
    """Turns what other systems wrote into features, models and collections of modalloy."""

    name = "import"
    summary = "Turn other systems' features, checkpoints and datasets into modalloy's."
    example = "modalloy import regions FOLDER --collection demo --out features/regions"

    def add_arguments(self, parser: ArgumentParser) -> None:
        """See `Verb`."""
        kinds = "; ".join(f"{name}: {kind.what}" for name, kind in _KINDS.items())
        parser.add_argument("kind", choices=list(_KINDS), help=kinds)
        parser.add_argument("source", type=str, help="the file, folder or hub name to import")
        parser.add_argument("--out", type=str, required=True, help="folder of what is made")
        groups: dict[str, Any] = {}
        for name, (type_, text) in _OPTIONS.items():
            takers = " and ".join(kind for kind, each in _KINDS.items() if name in each.takes)
            if takers not in groups:
                groups[takers] = parser.add_argument_group(f"options of {takers}")
            several: dict[str, Any] = {"nargs": "+"} if name == "inputs" else {}
            groups[takers].add_argument(_flag(name), type=type_, default=None, help=text, **several)

    def execute(self, options: Namespace) -> dict[str, Any]:
        """See `Verb`."""
        kind = _KINDS[options.kind]
        for name in _OPTIONS:
            if options[name] is not None and name not in kind.takes:
                takes = ", ".join(map(_flag, kind.takes))
                raise ConfigError(f"import {options.kind} takes {takes}, not {_flag(name)}.")
            if options[name] is None and name in kind.needs:
                raise ConfigError(f"import {options.kind} needs {_flag(name)}: {_OPTIONS[name][1]}.")
        return kind.run(options)

    def show(self, result: dict[str, Any], console: Console) -> None:
        """See `Verb`."""
        table = Table(show_header=False, box=None)
        for key, value in _flat(result):
            table.add_row(key, Text(str(value), overflow="fold"))
        console.print(table)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested keys joined by blanks, for a table of two columns."""
    rows: list[tuple[str, Any]] = []
    for key, each in value.items():
        rows += _flat(each, f"{prefix}{key} ") if isinstance(each, dict) else [(f"{prefix}{key}", each)]
    return rows
