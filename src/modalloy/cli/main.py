"""The command line: results on stdout, logs and progress on stderr, exit code 2 for a user's mistake."""

import json
import logging
import sys
from collections.abc import Sequence

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from rich.logging import RichHandler

from modalloy.cli.align import Align
from modalloy.cli.demo import Demo
from modalloy.cli.doctor import Doctor
from modalloy.cli.evaluate import Evaluate
from modalloy.cli.extract import Extract
from modalloy.cli.fuse import Fuse
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
    Doctor(),
)
USER_MISTAKE = 2
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=Console(stderr=True), show_time=False, show_path=False)],
    )
    options = _parser().parse_args(arguments)
    verb = next(verb for verb in VERBS if verb.name == options.verb)
    chosen: Namespace = options[verb.name]
    try:
        set_threads(chosen.threads)
        keep_freed_memory()
        result = verb.execute(chosen)
    except ModalloyError as error:
        print(f"modalloy {verb.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_MISTAKE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return INTERRUPTED
    if chosen.json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        verb.show(result, Console())
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="modalloy", description="One stronger image-text retriever out of the encoders you already have."
    )
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for verb in VERBS:
        subparser = ArgumentParser(description=f"{verb.summary} Example: {verb.example}")
        verb.add_arguments(subparser)
        subparser.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
        subparser.add_argument(
            "--threads", type=int | None, default=None, help="threads of the arithmetic; default: the idle cores"
        )
        subcommands.add_subcommand(verb.name, subparser, help=verb.summary)
    return parser


if __name__ == "__main__":
    sys.exit(main())
