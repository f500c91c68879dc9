"""The cache on disk: folders named by what they were made from, made once, whole or not at all.

A folder is built under a temporary name and renamed; an advisory lock spares a second process the same work, and
the rename keeps the cache right even where locks do not work. In: a key and a builder. Out: what the folder holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from forgather_dsl.errors import UserError
from forgather_dsl.plan.cached import cache_root  # noqa: F401  the root of this cache too

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

T = TypeVar("T")


def key(**parts: Any) -> str:
    """A name for what is made from these JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def once(folder: Path, build: Callable[[Path], None], read: Callable[[Path], T | None]) -> T:
    """What `read` finds in `folder`; built first when it is not there, or damaged (`read` returns None).

    `build` writes into the folder it is given. Two processes that ask at once get the same folder.
    Raises: UserError: the disk is full or cannot be written, and whatever `build` raises.
    """
    found = read(folder)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            found = read(folder)  # another process may have made it while this one waited
            if found is None:
                _build(folder, build, read)
                found = read(folder)
    except OSError as error:
        advice = "Free some space, or set FORGATHER_CACHE to a folder that can be written."
        raise UserError(f"cache {folder}: {error.strerror or error}. {advice}", exit_code=4) from error
    if found is None:
        raise UserError(f"cache {folder}: damaged as soon as it was written; is the disk sound?", exit_code=4)
    return found


def _build(folder: Path, build: Callable[[Path], None], read: Callable[[Path], Any]) -> None:
    prefix = f".{folder.name}."
    if fcntl is not None:  # with the lock held, what lies here was left by a process that died
        for stale in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        build(temporary)
        for path in [*temporary.iterdir(), temporary]:
            _flush(path)
        if folder.exists() and read(folder) is None:
            shutil.rmtree(folder)
        try:
            temporary.rename(folder)
        except OSError:
            if read(folder) is None:  # otherwise another process was first, with the same content
                raise
        _flush(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(path: Path) -> None:
    """fsync: after a power cut a renamed folder must not turn out to hold zeros."""
    if path.is_dir() and os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    with open(folder.parent / f"{folder.name}.lock", "w") as file:
        if fcntl is not None:
            with contextlib.suppress(OSError):  # a file system without locks: the rename alone keeps it right
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
