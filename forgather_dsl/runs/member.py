"""One member of a sweep, in a process of its own: `python -m forgather_dsl.runs.member`, started by `Sweep` alone.

What to train comes as JSON on stdin. The exit code follows the command line's contract; why it failed is the last `error:` line.
"""

from __future__ import annotations

import json
import sys
import traceback
from typing import Any

from ..dsl import ConfigError, from_dict
from ..errors import UserError, printable
from ..parallel.launch import CRASHED, INTERRUPTED, end_process
from ..train.trainer import Trainer


def main(said: dict[str, Any]) -> int:
    """Train it, from where it stopped."""
    try:
        experiment = from_dict(said["config"], trust=said["trust"])
        Trainer(experiment, **said["options"]).fit()
    except (UserError, ConfigError) as error:
        if str(error):  # else what went wrong is said
            print(printable(f"error: {error}"), file=sys.stderr, flush=True)
        return getattr(error, "exit_code", 2)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        traceback.print_exc()
        print(printable(f"error: {type(error).__name__}: {error}"), file=sys.stderr, flush=True)
        return CRASHED
    return 0


if __name__ == "__main__":
    end_process(main(json.load(sys.stdin)))
