"""What the sources of an index can be called."""

import re

from modalloy.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def check_source_name(name: str) -> None:
    """Refuses a name that can't begin an item's id; a source may be without one.

    Raises:
        ConfigError: it can't be a source's.
    """
    if name and not _NAME.fullmatch(name):
        raise ConfigError(
            f"a source is named with letters, digits, '.', '_' and '-', got {name!r}; name it otherwise (--name)."
        )


def source_name_of(file: str) -> str:
    """A name made of a folder's or file's.

    >>> source_name_of("My holidays"), source_name_of("..."), source_name_of("_x")
    ('My-holidays', 'source', 'x')
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", file).lstrip("._-") or "source"
