"""python -m modalloy, and the command modalloy"""

import sys


def main() -> int:
    """Runs the command line; an interruption while its libraries are still loading is one line too."""
    try:
        from modalloy.cli.main import main as run_command

        return run_command()
    except KeyboardInterrupt:
        print("interrupted; nothing had begun yet", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
