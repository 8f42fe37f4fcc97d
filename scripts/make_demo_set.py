"""Makes the demo set from Debian's Open Clip Art packages: `python scripts/make_demo_set.py --out FOLDER`.

Needs `apt-get install openclipart-png openclipart-svg wamerican`. The same packages, seed and Pillow give the
same bytes. The steps are modules of `demo_set/`: metadata (RDF), captions (cleaning), pictures (canvas),
families (near-duplicates), splits (the draw), folder (writing).
"""

import argparse
import re
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from demo_set import captions as text
from demo_set.families import families_of, title_stem
from demo_set.folder import PACKAGES, SPLITS, Entry, write_folder
from demo_set.metadata import PUBLIC_DOMAIN, MetadataError, Work, read_work
from demo_set.pictures import PictureError, canvas_of, encode, fingerprint_of, shows_missing_picture
from demo_set.splits import Assignment, Candidate, assign_splits

from modalloy.progress import track

# Icon themes, flags, maps, playing cards, shapes: series whose members have no captions of their own.
SERIES_FOLDERS = re.compile(
    r"^(?:shapes|special|logos|buttons|computer/(?:icons|buttons|diagrams|connectors|network))/"
    r"|/(?:flags|map_symbols|led|cards|roadsigns|clocks|duplicates|stickmen|semaphore)/"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Makes the set and prints what was dropped and kept; returns the exit code."""
    options = _parse(arguments)
    missing = [path for path in (options.source / "svg", options.source / "png", options.words) if not path.exists()]
    if missing:
        print(
            f"{', '.join(map(str, missing))} not found: run `apt-get install {' '.join(PACKAGES)}`, "
            "or name the folder with --source and the word list with --words.",
            file=sys.stderr,
        )
        return 2
    dropped: Counter[str] = Counter()
    english = {line.strip().lower() for line in options.words.read_text(encoding="utf-8").splitlines()}
    works = read_works(options.source / "svg", dropped)
    entries = read_pictures(title_works(works, english, dropped), options, dropped)
    families = families_of([e.title for e in entries], np.array([e.fingerprint for e in entries]), options.threshold)
    caption(entries, english)
    candidates = [Candidate(e.work.path, e.captions, f) for e, f in zip(entries, families, strict=True)]
    chosen = assign_splits(
        candidates,
        {"test": options.test, "val": options.val, "tune": options.tune},
        options.seed,
        options.most_per_family,
        options.largest_held_out_family,
    )
    for candidate in candidates:
        if candidate.path not in chosen:
            dropped["another picture of its family was taken"] += 1
    write_folder(options.out, entries, families, chosen, options.threshold, options.seed)
    report(entries, families, chosen, dropped, options.out)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder to write; replaced if it exists")
    add("--source", type=Path, default=Path("/usr/share/openclipart"), help="folder that holds svg/ and png/")
    add(
        "--words",
        type=Path,
        default=Path("/usr/share/dict/american-english"),
        help="English words, one a line",
    )
    add("--seed", type=int, default=0, help="of the draw into splits")
    add("--test", type=int, default=280, help="pictures in test")
    add("--val", type=int, default=150, help="pictures in val")
    add("--tune", type=int, default=150, help="pictures in tune")
    add(
        "--threshold",
        type=float,
        default=0.97,
        help="16x16 grey correlation above which pictures are a family",
    )
    add("--most-per-family", type=int, default=5, help="pictures of one family in train")
    add("--largest-held-out-family", type=int, default=1, help="larger families stay in train")
    add("--max-pixels", type=int, default=16_000_000, help="larger pictures are dropped before decoding")
    add("--min-side", type=int, default=64, help="pictures whose longer side is shorter are dropped")
    add("--quality", type=int, default=82, help="of the WebP files, 0 to 100")
    return parser.parse_args(arguments)


def read_works(root: Path, dropped: Counter[str]) -> list[Work]:
    """The metadata of every SVG below `root` that may be used; counts in `dropped` why the others may not."""
    works = []
    paths = sorted(root.rglob("*.svg"))
    for path in track(paths, "reading metadata", total=len(paths)):
        if path.is_symlink():
            dropped["link to another entry"] += 1
        elif SERIES_FOLDERS.search(path.relative_to(root).as_posix()):
            dropped["folder of a series (icons, flags, maps, cards, shapes, ...)"] += 1
        else:
            try:
                work = read_work(path, root)
            except MetadataError as error:
                dropped[str(error)] += 1
                continue
            if work.licence not in PUBLIC_DOMAIN:
                dropped["not tagged as public domain"] += 1
            elif not work.author:
                dropped["no author"] += 1
            else:
                works.append(work)
    return works


def title_works(works: list[Work], english: Collection[str], dropped: Counter[str]) -> list[tuple[Work, str]]:
    """Each work with its cleaned title; counts in `dropped` the works whose title isn't usable."""
    counts = Counter(work.title for work in works)
    titled = [(work, text.individual_title(work, counts, english)) for work in works]
    foreign = text.foreign_authors([(work.author, title) for work, title in titled], english)
    kept = []
    for work, title in titled:
        problem = "author's titles aren't English" if work.author in foreign else None
        problem = problem or text.title_problem(title, work, english)
        if problem:
            dropped[problem] += 1
        else:
            kept.append((work, title))
    return kept


def read_pictures(titled: list[tuple[Work, str]], options: argparse.Namespace, dropped: Counter[str]) -> list[Entry]:
    """Draws each work's PNG on the canvas and encodes it; counts in `dropped` the unusable pictures."""
    entries = []
    seen: set[bytes] = set()
    for work, title in track(titled, "drawing pictures", total=len(titled)):
        png = options.source / "png" / f"{work.path}.png"
        try:
            if not png.is_file():
                raise PictureError("no PNG of this name")
            canvas = canvas_of(png, options.max_pixels, options.min_side)
            if work.links_picture and shows_missing_picture(canvas):
                raise PictureError("a linked picture is missing")
        except PictureError as error:
            dropped[str(error)] += 1
            continue
        encoded = encode(canvas, options.quality)
        if encoded in seen:
            dropped["same picture as another entry"] += 1
            continue
        seen.add(encoded)
        entries.append(Entry(work, title, fingerprint_of(canvas), encoded))
    return entries


def caption(entries: list[Entry], english: Collection[str]) -> None:
    """Fills in the captions; keywords that pictures of different titles share are told apart by the title."""
    keywords = [text.clean_keywords(e.work.keywords, e.work.author, english) for e in entries]
    stems: dict[tuple[str, ...], set[str]] = {}
    for entry, own in zip(entries, keywords, strict=True):
        stems.setdefault(tuple(own), set()).add(title_stem(entry.title))
    for entry, own in zip(entries, keywords, strict=True):
        phrase = text.keyword_phrase(entry.title, own, shared=len(stems[tuple(own)]) > 1)
        description = text.clean_description(entry.work.description, english)
        entry.captions = tuple(text.captions_of(entry.title, description, phrase))


def report(
    entries: list[Entry],
    families: list[int],
    chosen: Assignment,
    dropped: Counter[str],
    out: Path,
) -> None:
    """Prints what was dropped and why, and what each split holds."""
    print("dropped:")
    for reason, count in dropped.most_common():
        print(f"  {count:5d}  {reason}")
    family_of = {entry.work.path: family for entry, family in zip(entries, families, strict=True)}
    for split in SPLITS:
        members = {path: captions for path, (name, captions) in chosen.items() if name == split}
        captions = sum(map(len, members.values()))
        held = len({family_of[path] for path in members})
        print(f"{split:>5}: {len(members)} pictures, {captions} captions, {held} families")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"{len(chosen)} pictures, {size / 1e6:.2f} MB in {out}")


if __name__ == "__main__":
    sys.exit(main())
