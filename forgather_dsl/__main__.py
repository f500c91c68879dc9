"""`python -m forgather_dsl VERB ...`, and the console script of the same name."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line of this process; ends it with the exit code."""
    from .parallel.cluster import adopt_slurm
    from .parallel.lifeline import die_with_launcher

    if adopt_slurm() or "RANK" in os.environ:
        die_with_launcher()
    from .cli.app import run_command

    code = run_command(sys.argv[1:])
    if "RANK" in os.environ:  # of torchrun or a cluster
        from .parallel.launch import CRASHED, end_process
        from .parallel.lifeline import AGENT_SECONDS, end_agent

        if code == CRASHED:
            end_agent(AGENT_SECONDS)
        end_process(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
