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
from modalloy.cli.parser import USER_MISTAKE, Parser
from modalloy.cli.report import Report
from modalloy.cli.run import Run
from modalloy.cli.search import Search
from modalloy.cli.verb import Verb
from modalloy.errors import ModalloyError
from modalloy.memory import keep_freed_memory
from modalloy.threads import set_threads

VERBS: tuple[Verb, ...] = (
    Demo(),
    Run(),
    Extract(),
    Align(),
    Fuse(),
    Evaluate(),
    Search(),
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
    verb = next(verb for verb in VERBS if verb.name == options.verb)
    try:
        chosen: Namespace = parser.instantiate(options)[verb.name]
        set_threads(chosen.threads)
        keep_freed_memory()
        result = verb.execute(chosen)
        if chosen.json:
            print(json.dumps(result, ensure_ascii=False, allow_nan=False))
        else:
            verb.show(result, Console(width=_width(sys.stdout.isatty())))
    # An OSError is a folder that can't be written to, a file in a folder's place, a full disk.
    except (ModalloyError, OSError) as error:
        print(f"{parser.prog} {verb.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    return verb.exit_code(result)


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
    parser.verbs = {}
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for verb in VERBS:
        subparser = Parser(description=f"{verb.summary} Example: {verb.example}", allow_abbrev=False)
        # To declare its options a verb may have to import what trains, which takes seconds.
        if verb.name in arguments:
            verb.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        subparser.add_argument(
            "--threads", type=int | None, default=None, help="threads of the arithmetic; default: the idle cores"
        )
        subcommands.add_subcommand(verb.name, subparser, help=verb.summary)
        subparser.prog = f"{parser.prog} {verb.name}"
        parser.verbs[verb.name] = subparser
    return parser


if __name__ == "__main__":
    sys.exit(main())
