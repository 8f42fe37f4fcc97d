"""The command line: results on stdout, logs and progress on stderr, exit code 2 for a user's mistake."""

import json
import logging
import sys
from collections.abc import Sequence

from jsonargparse import Namespace, set_parsing_settings
from rich.console import Console
from rich.logging import RichHandler

from modalloy.cli.align import Align
from modalloy.cli.demo import Demo
from modalloy.cli.doctor import Doctor
from modalloy.cli.evaluate import Evaluate
from modalloy.cli.extract import Extract
from modalloy.cli.fuse import Fuse
from modalloy.cli.imports import Import
from modalloy.cli.index import Index
from modalloy.cli.parser import USER_MISTAKE, Parser
from modalloy.cli.report import Report
from modalloy.cli.run import Run
from modalloy.cli.search import Search
from modalloy.cli.serve import Serve
from modalloy.cli.verb import Verb, VerbGroup
from modalloy.errors import ModalloyError
from modalloy.memory import keep_freed_memory
from modalloy.threads import set_threads

VERBS: tuple[Verb | VerbGroup, ...] = (
    Demo(),
    Run(),
    Extract(),
    Align(),
    Fuse(),
    Evaluate(),
    Index(),
    Search(),
    Serve(),
    Report(),
    Import(),
    Doctor(),
)
INTERRUPTED = 130
WIDTH_OF_A_FILE = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    stderr = Console(stderr=True, width=_width(sys.stderr.isatty()))
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=stderr, show_time=False, show_path=False)],
    )
    try:
        return _command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED


def _command(arguments: Sequence[str]) -> int:
    parser = _parser(arguments)
    options = parser.parse_args(arguments)
    verb, prog = _find(VERBS, options.verb), f"{parser.prog} {options.verb}"
    try:
        chosen: Namespace = parser.instantiate(options)[verb.name]
        if isinstance(verb, VerbGroup):
            verb, prog = _find(verb.verbs, chosen.verb), f"{prog} {chosen.verb}"
            chosen = chosen[verb.name]
        assert isinstance(verb, Verb)
        set_threads(chosen.threads)
        keep_freed_memory()
        result = verb.execute(chosen)
        if chosen.json:
            print(json.dumps(result, ensure_ascii=False, allow_nan=False))
        else:
            verb.show(result, Console(width=_width(sys.stdout.isatty())))
    # An OSError is a folder that can't be written to, a file in a folder's place, a full disk.
    except (ModalloyError, OSError) as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    return verb.exit_code(result)


def _find(verbs: Sequence[Verb | VerbGroup], name: str) -> Verb | VerbGroup:
    return next(verb for verb in verbs if verb.name == name)


def _width(is_terminal: bool) -> int | None:
    # Rich takes a file or a pipe to be 80 columns wide, and would break the lines.
    return None if is_terminal else WIDTH_OF_A_FILE


def _parser(arguments: Sequence[str]) -> Parser:
    # So that the text under a configuration's field is the help of its option.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = Parser(
        prog="modalloy",
        description="One stronger image-text retriever out of the encoders you already have.",
        allow_abbrev=False,
    )
    _add_verbs(parser, VERBS, arguments)
    return parser


def _add_verbs(parser: Parser, verbs: Sequence[Verb | VerbGroup], arguments: Sequence[str]) -> None:
    parsers: dict[str, Parser] = {}
    parser.verbs = parsers
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for verb in verbs:
        description = verb.summary if isinstance(verb, VerbGroup) else f"{verb.summary} Example: {verb.example}"
        subparser = Parser(description=description, allow_abbrev=False)
        if isinstance(verb, Verb):
            # To declare its options a verb may have to import what trains, which takes seconds.
            if verb.name in arguments:
                verb.add_arguments(subparser)
                subparser.spell_with_dashes()
            subparser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
            subparser.add_argument(
                "--threads", type=int | None, default=None, help="threads of the arithmetic; default: the idle cores"
            )
        subcommands.add_subcommand(verb.name, subparser, help=verb.summary)
        # Adding it as a subcommand changes its name.
        subparser.prog = f"{parser.prog} {verb.name}"
        parsers[verb.name] = subparser
        if isinstance(verb, VerbGroup):
            _add_verbs(subparser, verb.verbs, arguments)


if __name__ == "__main__":
    sys.exit(main())
