"""What changes an index as the work of another process, which tells of each commit once it has returned.

It has stages, each of which starts where others ended; see `PRECEDING`.
"""

import shutil
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import patch

# Here, so that a process forked of one that has imported this starts at once.
import lancedb.index  # noqa: F401
import torch
from index.small_source import CountingEncoder, write_picture

from modalloy.index import lance, open_index, writer_lock
from modalloy.index.removal import remove_pictures, remove_source
from modalloy.index.sync import SyncConfig
from modalloy.workflow import indexing

PRECEDING = {
    "build": (),
    "add": ("build",),
    "update": ("build", "add", "edit"),
    "remove": ("build", "add"),
    "upgrade": ("build", "add"),
    "optimize": ("build", "add"),
}
"""What comes before each stage."""

# A forked process has no running threads of LanceDB's, and nothing of it was in use.
warnings.filterwarnings("ignore", message="lancedb fork support")


def write_pictures(root: Path) -> None:
    """Two folders, one of which has captions."""
    for number in range(16):
        write_picture(root / "pictures" / f"sub{number % 2}" / f"{number}.png", number, [f"number {number}"] * 2)
    for number in range(8):
        write_picture(root / "more" / f"{number}.png", 300 + number)


def run_stage(stage: str, root: Path, location: Path) -> None:
    """Does it, by an encoder that needs no files."""
    with patch.object(indexing, "load_encoder", lambda spec: CountingEncoder(spec.removeprefix("counting-"))):
        keeper = indexing.Keeper(str(location), SyncConfig(batch_size=2, commit_size=3, workers=1))
        match stage:
            case "build":
                keeper.build(str(root / "pictures"), spec="counting-a")
            case "add":
                keeper.add(str(root / "more"), name="more")
            case "edit":
                _edit(root / "pictures")
            case "update":
                keeper.update()
            case "remove":
                _remove(str(location))
            case "upgrade":
                keeper.build(str(root / "pictures"), spec="counting-b")
            case "optimize":
                with writer_lock(str(location)):
                    # As few rows as these get an approximate search, too.
                    lance.LanceIndex.open(location, exact_up_to=10).optimize()


def run_and_tell(tells: Connection, stage: str, root: Path, location: Path) -> None:
    """The same in a process of its own: tells that it begins, and of each commit its generation and ids."""
    torch.set_num_threads(1)
    commit = lance.LanceIndex.commit

    def told(self, rows=None, removed=(), head=None):
        commit(self, rows, removed, head)
        tells.send((self.head.generation, [] if rows is None else rows["id"].to_pylist(), list(removed)))

    lance.LanceIndex.commit = told
    tells.send(None)
    run_stage(stage, root, location)


def told_until_its_end(tells: Connection) -> Iterator[tuple[int, list[str], list[str]] | None]:
    """All that a process still tells."""
    try:
        while True:
            yield tells.recv()
    except EOFError:
        return


def _edit(pictures: Path) -> None:
    """Renames a folder; changes, removes, recaptions and adds pictures."""
    shutil.move(pictures / "sub1", pictures / "moved")
    write_picture(pictures / "sub0" / "0.png", 100)
    (pictures / "sub0" / "2.png").unlink()
    (pictures / "sub0" / "2.txt").unlink()
    (pictures / "sub0" / "4.txt").write_text("number 4\nanother one")
    (pictures / "moved" / "5.txt").write_text("just this")
    for number in range(200, 204):
        write_picture(pictures / "new" / f"{number}.png", number, [f"number {number}"])


def _remove(location: str) -> None:
    # What was removed before is unknown now.
    with writer_lock(location):
        index = open_index(location)
        sources = {source.name for source in index.head.sources}
        ids = ["sub0:0.png", "sub1:1.png", "sub0:2.png"]
        for id in index.snapshot().rows(ids, ["id"])["id"].to_pylist():
            remove_pictures(index, [id])
        if "more" in sources:
            remove_source(index, "more")
