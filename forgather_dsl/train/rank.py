"""One rank of a launched run: `python -m forgather_dsl.train.rank RUN_DIR RESUME [CHANGE...]`, started by `launch` alone."""

from __future__ import annotations

import os
import sys
import traceback

from ..dsl import ConfigError
from ..errors import UserError, printable
from ..parallel.failures import speaks_first
from ..parallel.launch import CRASHED, INTERRUPTED, end_process
from .directory import read_config
from .prepare import prepare
from .session import run_session
from .trainer import TRUSTED
from .watching import die_by_signals


def main(arguments: list[str]) -> int:
    """Train as this rank; the exit code follows the command line's contract."""
    path, resume, *changes = arguments
    die_by_signals()
    try:
        experiment = read_config(path, trust=os.environ.get(TRUSTED) == "1")
        run_session(experiment, path, prepare(experiment), resume=resume, changes=changes)
    except (UserError, ConfigError) as error:
        if speaks_first():  # what the ranks refuse they refuse together: one of them says why
            print(printable(f"error: {error}"), file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        if speaks_first():
            traceback.print_exc()
        return CRASHED
    return 0


if __name__ == "__main__":
    end_process(main(sys.argv[1:]))
