"""A page of the documentation that is made whenever it is built: the help of every verb of the command line.

MkDocs calls `on_files`, see `hooks` in mkdocs.yml.
"""

import os
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from modalloy.cli.main import VERBS, _parser
from modalloy.cli.parser import Parser
from modalloy.cli.verb import VerbGroup

PAGE = "command-line.md"
_COLUMNS = "100"
_INTRODUCTION = """# The command line

What `--help` says of each verb. Results go to stdout, logs and progress to stderr; a user's mistake is one line and the
exit code 2. What is interrupted goes on by the same command.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the page."""
    files.append(File.generated(config, PAGE, content=command_line()))
    return files


def command_line() -> str:
    """The page, in Markdown."""
    os.environ["COLUMNS"] = _COLUMNS
    helps = [f"## {parser.prog}\n\n```text\n{parser.format_help().strip()}\n```\n" for parser in all_parsers()]
    return "\n".join([_INTRODUCTION, *helps])


def all_parsers() -> Iterator[Parser]:
    """The parser of every verb, those of groups too."""
    # A verb declares its options where it is named.
    named = [verb.name for each in VERBS for verb in (each.verbs if isinstance(each, VerbGroup) else (each,))]
    for parser in _parser(named).verbs.values():
        yield from parser.verbs.values() or [parser]
