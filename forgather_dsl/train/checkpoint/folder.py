"""The folder of a run's checkpoints: names, and changes that a power cut at any moment leaves whole. Imports no torch.

`step-00000100` is committed; `step-00000100-2` is the same step written again, beside the first until it is committed.
`.step-....partial` is being written, `.trash-...` being deleted, `step-....bad` was found damaged and set aside.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time

_COMMITTED = re.compile(r"step-(\d{8,})(?:-(\d+))?")
_BAD = re.compile(r"step-\d{8,}(-\d+)?\.bad(-\d+)?")
_LEFTOVER = re.compile(r"\.trash-.+|\.step-.+\.partial")


def place(path: str) -> tuple[int, int] | None:
    """(step, how many times it was written) by the name of a committed checkpoint; None for other names."""
    found = _COMMITTED.fullmatch(os.path.basename(path))
    return None if found is None else (int(found[1]), int(found[2] or 1))


def listed(folder: str) -> list[str]:
    """Committed checkpoints, newest first. Links are none."""
    found = [(at, entry.path) for entry in _entries(folder) if (at := place(entry.name)) is not None]
    return [path for _, path in sorted(found, reverse=True)]


def aside(folder: str) -> list[str]:
    """What was set aside."""
    return sorted(entry.path for entry in _entries(folder) if _BAD.fullmatch(entry.name))


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_dir(follow_symlinks=False)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def names_for(folder: str, step: int) -> tuple[str, str]:
    """(where to write a checkpoint of `step`, where to commit it): neither is there."""
    taken = [at[1] for path in listed(folder) if (at := place(path)) is not None and at[0] == step]
    name = f"step-{step:08d}" + (f"-{max(taken) + 1}" if taken else "")
    return os.path.join(folder, f".{name}.partial"), os.path.join(folder, name)


def commit(partial: str, final: str) -> None:
    """Give what is written its name. Everything in it must have been synced."""
    sync(partial)
    os.rename(partial, final)
    sync(os.path.dirname(final))


def discard(path: str) -> None:
    """Delete a checkpoint: it stops being one at once, whatever happens to its files afterwards."""
    folder, name = os.path.split(path)
    trash = os.path.join(folder, f".trash-{name.strip('.')}-{time.time_ns()}")
    os.rename(path, trash)
    shutil.rmtree(trash, ignore_errors=True)


def sweep(folder: str) -> None:
    """Delete what an earlier start left half written or half deleted. Nobody may be writing here."""
    for entry in _entries(folder):
        if _LEFTOVER.fullmatch(entry.name):
            shutil.rmtree(entry.path, ignore_errors=True)


def set_aside(path: str) -> bool:
    """Rename a damaged checkpoint; False where that is not allowed."""
    number, free = 2, path + ".bad"
    while os.path.lexists(free):
        free, number = f"{path}.bad-{number}", number + 1
    with contextlib.suppress(OSError):
        os.rename(path, free)
        return True
    return False


def sync(path: str) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
