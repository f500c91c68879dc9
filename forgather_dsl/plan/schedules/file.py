"""A schedule that stands in a file: CSV, one row per rank, as torch.distributed.pipelining writes it.

In: a path. Out: the `Schedule`, its name the file's. Whether it can be run, and goes with an experiment, is for others to say.
"""

from __future__ import annotations

import os

from forgather_dsl.plan.actions import Schedule, from_csv

__all__ = ["from_file"]


def from_file(path: str) -> Schedule:
    """Read a schedule. Raises ValueError, naming the file, when that is not there or holds no schedule."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return from_csv(file.read(), os.path.basename(path))
    except OSError as error:
        here = "" if os.path.isabs(path) else f" in {os.getcwd()}"
        raise ValueError(f"{path} cannot be read{here}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text: byte {error.start} is not UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
