"""The command line: results on stdout, logs and progress on stderr, exit code 2 for a user's mistake."""

import json
import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console
from rich.logging import RichHandler

from modalloy.cli.align import Align
from modalloy.cli.demo import Demo
from modalloy.cli.doctor import Doctor
from modalloy.cli.evaluate import Evaluate
from modalloy.cli.extract import Extract
from modalloy.cli.fuse import Fuse
from modalloy.cli.imports import Import
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
USER_MISTAKE = 2
INTERRUPTED = 130
WIDTH_OF_A_FILE = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    arguments = sys.argv[1:] if arguments is None else arguments
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
            # Rich takes a file or a pipe to be 80 columns wide, and would break the lines.
            verb.show(result, Console(width=None if sys.stdout.isatty() else WIDTH_OF_A_FILE))
    # An OSError is a folder that can't be written to, a file in a folder's place, a full disk.
    except (ModalloyError, OSError) as error:
        print(f"modalloy {verb.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    return verb.exit_code(result)


class _Parser(ArgumentParser):
    """Answers a mistake in the arguments with one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the mistake and exits with 2."""
        command = self.prog.replace(" [options]", "")
        reason = " ".join(str(message).split())
        print(f"{command}: {reason} (see {command} --help)", file=sys.stderr)
        sys.exit(USER_MISTAKE)


def _parser(arguments: Sequence[str]) -> ArgumentParser:
    # So that the text under a configuration's field is the help of its option.
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = _Parser(
        prog="modalloy",
        description="One stronger image-text retriever out of the encoders you already have.",
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for verb in VERBS:
        subparser = _Parser(description=f"{verb.summary} Example: {verb.example}", allow_abbrev=False)
        # To declare its options a verb may have to import what trains, which takes seconds.
        if verb.name in arguments:
            verb.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        subparser.add_argument(
            "--threads", type=int | None, default=None, help="threads of the arithmetic; default: the idle cores"
        )
        subcommands.add_subcommand(verb.name, subparser, help=verb.summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
