"""`python -m forgather_dsl VERB ...`, and the console script of the same name."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line of this process; ends it with the exit code."""
    from .parallel.cluster import adopt_slurm
    from .parallel.launch import CRASHED, INTERRUPTED, end_process
    from .parallel.lifeline import AGENT_SECONDS, die_with_launcher, end_agent

    if adopt_slurm() or "RANK" in os.environ:
        die_with_launcher()
    from .cli.app import run_command

    code = run_command(sys.argv[1:])
    if "RANK" in os.environ or code in (CRASHED, INTERRUPTED):  # a run that failed: all is said and closed
        if "RANK" in os.environ and code == CRASHED:
            end_agent(AGENT_SECONDS)
        end_process(code)  # to take apart what training has imported, Python needs up to two seconds
    sys.exit(code)


if __name__ == "__main__":
    main()
