"""The directory of a sweep: which one, held by one process at a time, and what an earlier call has left in its index."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from ..errors import UserError
from ..train.directory import require_place
from .run import is_run
from .sweep_index import Index, is_sweep, read

__all__ = ["choose", "held", "with_earlier"]

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def choose(name: str, out: str | None, resume: str) -> str:
    """`out`, or `runs/<name>`, numbered when it exists and `resume` is "never". Made if it is not there.

    Raises UserError where no sweep can be.
    """
    if resume not in ("auto", "never"):
        raise UserError(f"--resume {resume}: a sweep goes on where its members stop; write auto or never")
    path = out if out is not None else os.path.join("runs", name)
    number, new = 2, path
    while resume == "never" and out is None and os.path.exists(new):
        new, number = f"{path}-{number}", number + 1
    require_place(new)
    if is_run(new):
        raise UserError(f"{new} is a run, and a sweep needs a directory of its own; write another --out")
    if resume == "never" and is_sweep(new):
        raise UserError(
            f"{new} holds a sweep already; leave out --resume never to go on with it, or write another --out"
        )
    os.makedirs(new, exist_ok=True)
    return new


def with_earlier(path: str, index: Index) -> Index:
    """The index with the members that the directory knows, all marked as dropped until they are listed again.

    Raises UserError: the directory is of another sweep.
    """
    if not is_sweep(path):
        return index
    found = read(path)
    if found.target != index.target or (index.target is None and found.name != index.name):
        raise UserError(
            f"{path} holds the sweep {found.target or found.name}, not {index.target or index.name}; write another --out"
        )
    for entry in found.members:
        entry.dropped = True
    index.members = found.members
    return index


@contextlib.contextmanager
def held(path: str) -> Iterator[None]:
    """For this process alone: two sweeps would write over each other's index. Raises UserError when another holds it."""
    with open(os.path.join(path, "sweep.lock"), "w", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{path} is being swept already; wait for it, or write another --out") from None
            except OSError:  # a file system without locks
                pass
        yield
