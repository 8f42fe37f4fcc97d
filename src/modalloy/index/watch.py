"""Notices that something changed in the folders of an index's sources."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from modalloy.errors import ModalloyError
from modalloy.index.base import Source

_DEBOUNCE_MS = 1600
_FIRST_LOOK_MS = 1000
_log = logging.getLogger(__name__)


def watched_folders(sources: Iterable[Source]) -> list[Path]:
    """The folders in which a change of some sources can happen, none inside another one.

    One that isn't there is said to be left out.
    """
    named = {Path(path) for source in sources for path in (source.root, _folder_of(source)) if path}
    for missing in sorted(path for path in named if not path.is_dir()):
        _log.warning("%s isn't there, so that it isn't watched; start again once it is", missing)
    there = sorted(path for path in named if path.is_dir())
    return [path for path in there if not any(other in path.parents for other in there)]


def watch(
    folders: Sequence[Path], update: Callable[[], Any], ignored: str, stop: threading.Event | None = None
) -> None:
    """Calls `update` once, and again after each burst of changes, until Ctrl-C.

    What goes wrong in an update is logged; the next change starts another one.

    Args:
        folders: to be watched, with their subfolders.
        update: may take as long as it needs; what changes meanwhile is noticed.
        ignored: a folder that `update` itself writes to.
        stop: ends it, too.
    """
    from watchfiles import watch as changes_of

    own = Path(ignored).resolve()

    def matters(_: Any, path: str) -> bool:
        # Temporary files of editors and of downloads are mostly hidden.
        return not Path(path).name.startswith(".") and not Path(path).is_relative_to(own)

    first = True
    try:
        for changes in changes_of(
            *folders,
            watch_filter=matters,
            debounce=_DEBOUNCE_MS,
            rust_timeout=_FIRST_LOOK_MS,
            yield_on_timeout=True,
            stop_event=stop,
            ignore_permission_denied=True,
        ):
            # The first time even without changes: some may have happened before the watch began.
            if changes or first:
                first = False
                _try(update)
    except KeyboardInterrupt:
        _log.info("no longer watching")


def _try(update: Callable[[], Any]) -> None:
    try:
        update()
    except (ModalloyError, OSError) as error:
        _log.error("%s", " ".join(str(error).split()))


def _folder_of(source: Source) -> str:
    """The folder in which a list is; a list that is replaced can't be watched itself."""
    path = Path(source.collection)
    return "" if not path.is_absolute() else str(path if path.is_dir() else path.parent)
