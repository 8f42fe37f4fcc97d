"""The commands and options that the documentation names, held against the real parser."""

import importlib.util
import re
import shlex
from typing import get_args

import pytest
from doc_examples import DOCS, PAGES, ROOT, modalloy_commands, prose, require_parsed

from modalloy.index.condition import Comparison

_SPEC = importlib.util.spec_from_file_location("docs_pages", ROOT / "scripts" / "docs_pages.py")
assert _SPEC is not None and _SPEC.loader is not None
docs_pages = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(docs_pages)

GUIDE = [page for page in PAGES if page.parent.name == "guide"]
_SPAN = re.compile(r"`([^`\n]+)`")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][\w.-]*)")
_DEFAULT = re.compile(r"^\| `(modalloy [a-z ]+) (--?[\w.-]+)` \| ([^|]+) \|", re.MULTILINE)
_VALUE = re.compile(r"`[^`]+`|[\d.]+")
_OTHER_PROGRAMS = ("pip ", "pipx ", "hf ", "make ", "python ", "curl ")
# These name the options of benchmarks and scripts, too.
_OF_SCRIPTS = ("measurements", "experiments")
COMMANDS = {shlex.join(each): each for page in PAGES for each in modalloy_commands(page)}


@pytest.fixture(scope="module")
def options():
    return {option for parser in docs_pages.all_parsers() for option in parser._option_string_actions}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_every_command_is_taken_by_the_command_line(arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    require_parsed(arguments, capsys)


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_every_task_begins_with_commands(page):
    assert modalloy_commands(page)


@pytest.mark.parametrize(
    "page",
    [page for page in PAGES if page.stem not in _OF_SCRIPTS],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_every_option_named_in_the_text_exists(page, options):
    spans = [span for span in _SPAN.findall(prose(page)) if not span.startswith(_OTHER_PROGRAMS)]
    named = {option for span in spans for option in _OPTION.findall(span)}
    assert not {option for option in named if not _known(option, options)}


@pytest.mark.parametrize("page", [page for page in GUIDE if page.stem != "production"], ids=lambda page: page.stem)
def test_every_default_in_the_guide_is_the_command_lines(page):
    verbs = {parser.prog: parser._option_string_actions for parser in docs_pages.all_parsers()}
    rows = _DEFAULT.findall(prose(page))
    assert len(rows) > 5
    for verb, option, said in rows:
        default = verbs[verb][option].default
        # In words, what isn't a value.
        assert said == _written(default) if _VALUE.fullmatch(said) else default in (None, []), f"{verb} {option}"


def _written(default):
    return f"`{default}`" if isinstance(default, str) else f"{default:.4f}".rstrip("0").rstrip(".")


def test_every_comparison_of_a_condition_is_explained():
    rows = re.search(r"^\| comparison .*?\n\n", prose(DOCS / "guide" / "search.md"), re.MULTILINE | re.DOTALL)
    cells = "".join(line.split(" | ")[0] for line in rows[0].splitlines())
    assert _SPAN.findall(cells) == list(get_args(Comparison))


def _known(option, options):
    # Parts of what may be left out whole, such as --align.unfreeze, are options only once it is given.
    return option in options or ("." in option and _known(option.rpartition(".")[0], options))
