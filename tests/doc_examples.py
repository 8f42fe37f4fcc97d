"""What the documentation shows: blocks of code, commands, and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from modalloy.cli.main import _parser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

_FENCED = re.compile(r"^```(\w*)(?: title=\"([^\"]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_OTHER_PROGRAMS = {
    *("chown", "curl", "hf", "make", "mkdir", "openssl", "pip", "pipx", "python", "python3", "source", "systemctl"),
    *("umask", "useradd"),
}


class Block(NamedTuple):
    """A block of code."""

    language: str
    title: str
    code: str


def blocks(page: Path, language: str) -> list[Block]:
    """A page's blocks in a language."""
    found = (Block(*match) for match in _FENCED.findall(page.read_text(encoding="utf-8")))
    return [block for block in found if block.language == language]


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def commands(page: Path) -> Iterator[list[str]]:
    """The commands of a page's bash blocks, each with its arguments.

    >>> list(_split("A=1 make demo ARGS='-k x' | tail  # comment"))
    [['make', 'demo', 'ARGS=-k x'], ['tail']]
    """
    for block in blocks(page, "bash"):
        for line in block.code.replace("\\\n", " ").splitlines():
            yield from _split(line)


def modalloy_commands(page: Path) -> list[list[str]]:
    """The arguments of a page's modalloy commands; any other program must be a usual one."""
    found = []
    for program, *arguments in commands(page):
        name = program.rpartition("/")[2]
        if name == "modalloy":
            found.append(arguments)
        else:
            assert name in _OTHER_PROGRAMS, f"{page.name} calls {program}"
    return found


def require_parsed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Fails where the command line doesn't take these arguments."""
    try:
        _parser(arguments).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"modalloy {shlex.join(arguments)}: {capsys.readouterr().err}")


def _split(line: str) -> Iterator[list[str]]:
    words = shlex.shlex(line, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    command: list[str] = []
    for word in [*words, ";"]:
        if set(word) <= set("();<>|&"):
            if command:
                yield command
            command = []
        elif command or not re.fullmatch(r"[A-Z_]+=.*", word):
            command.append(word)
