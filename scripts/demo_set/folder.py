"""The demo set's folder: pictures, manifest, provenance, licence and README."""

import hashlib
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo_set.families import title_stem
from demo_set.metadata import Work
from demo_set.pictures import CANVAS
from demo_set.splits import Assignment

PACKAGES = ("openclipart-png", "openclipart-svg", "wamerican")
SPLITS = ("train", "val", "tune", "test")


@dataclass
class Entry:
    """One entry on its way through the checks."""

    work: Work
    title: str
    fingerprint: np.ndarray
    encoded: bytes
    captions: tuple[str, ...] = ()


def slugs_of(titles: Sequence[str]) -> list[str]:
    """A short readable name for each title, numbered where titles repeat.

    >>> slugs_of(["Red Car", "red car!", "Red car 2"])
    ['red-car', 'red-car-2', 'red-car-2-2']
    """
    slugs: list[str] = []
    used: set[str] = set()
    for title in titles:
        base = "-".join(re.findall(r"[a-z0-9]+", title.lower().replace("'", "")))[:40].strip("-")
        slug, number = base, 1
        while slug in used:
            number += 1
            slug = f"{base}-{number}"
        used.add(slug)
        slugs.append(slug)
    return slugs


def write_folder(
    out: Path, entries: list[Entry], families: list[int], chosen: Assignment, threshold: float, seed: int
) -> None:
    """Writes the folder beside `out`, then puts it in its place: a killed run leaves no half set."""
    partial = out.with_name(f".partial-{out.name}")
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "images").mkdir(parents=True)
    family_names = _family_names(entries, families)
    kept = [(entry, family) for entry, family in zip(entries, families, strict=True) if entry.work.path in chosen]
    versions = {package: _version_of(package) for package in PACKAGES}
    manifest: list[dict[str, Any]] = []
    provenance: list[dict[str, Any]] = []
    for (entry, family), name in zip(kept, slugs_of([entry.title for entry, _ in kept]), strict=True):
        split, captions = chosen[entry.work.path]
        path = f"images/{name}.webp"
        (partial / path).write_bytes(entry.encoded)
        manifest.append(
            {
                "id": name,
                "path": path,
                "sha256": hashlib.sha256(entry.encoded).hexdigest(),
                "split": split,
                "captions": list(captions),
                "family": family_names[family],
            }
        )
        provenance.append(
            {
                "id": name,
                "original": f"{entry.work.path}.png",
                "title": entry.work.title,
                "author": entry.work.author,
                "licence": entry.work.licence,
                "source": f"openclipart-png {versions['openclipart-png']}",
            }
        )
    _write_lines(partial / "manifest.jsonl", manifest)
    _write_lines(partial / "provenance.jsonl", provenance)
    counts: Counter[str] = Counter(item["split"] for item in manifest)
    (partial / "README.md").write_text(_readme(counts, versions, threshold, seed), encoding="utf-8")
    (partial / "LICENSE.md").write_text(_LICENCE, encoding="utf-8")
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def _family_names(entries: list[Entry], families: list[int]) -> dict[int, str]:
    first_titles: dict[int, str] = {}
    for entry, family in zip(entries, families, strict=True):
        first_titles.setdefault(family, title_stem(entry.title))
    return dict(zip(first_titles, slugs_of(list(first_titles.values())), strict=True))


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row["id"])
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _version_of(package: str) -> str:
    query = ["dpkg-query", "--show", "--showformat=${Version}", package]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip() or "unknown"
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


_LICENCE = """\
# Licence of the demo set

Every picture is an entry of the Open Clip Art Library that its author tagged as public domain in the file's
own RDF metadata (`cc:license` is `http://web.resource.org/cc/PublicDomain` or
`http://creativecommons.org/licenses/publicdomain/`). The titles, descriptions and keywords are part of the
same entries. Public-domain works need no credit; `provenance.jsonl` gives it all the same: each picture's
author, title, original file and licence tag.
"""


def _readme(counts: Counter[str], versions: Mapping[str, str], threshold: float, seed: int) -> str:
    packages = ", ".join(f"`{package}` {version}" for package, version in versions.items())
    table = "\n".join(f"| {split} | {counts[split]} |" for split in SPLITS)
    return f"""\
# Demo set

{counts.total()} pictures of the Open Clip Art Library (public domain, see `LICENSE.md`) with captions made
from their titles, descriptions and keywords.

| split | pictures |
|---|---:|
{table}

- `images/`: WebP, {CANVAS} x {CANVAS}, cropped to what is drawn and centred on white.
- `manifest.jsonl`: one picture a line: id, path, sha256, split, captions (the title first), family.
- `provenance.jsonl`: the author, original file, title and licence tag of each picture.

Pictures of one family (same words in the title, or a 16 x 16 grey correlation above {threshold:g}) are in one
split. `val`, `tune` and `test` hold one picture a family, and within each no two pictures share a caption.
`val` and `tune` are two validation parts, so that an alloy and its inputs need not be chosen on the same
pictures.

Made from {packages} by

    python scripts/make_demo_set.py --out src/modalloy/data/demo_set --seed {seed}
"""
