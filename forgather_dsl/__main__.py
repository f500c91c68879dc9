"""`python -m forgather_dsl VERB ...`, and the console script of the same name."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line of this process; ends it with the exit code."""
    from .cli.app import run_command

    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
