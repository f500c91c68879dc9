"""Whether a checkpoint is what was written: manifest, sizes, hashes. Imports no torch, changes nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from typing import Any

from . import folder, manifest

BLOCK = 1 << 22  # bytes read at a time


def problem(path: str) -> str | None:
    """Why a checkpoint cannot be used, or None: its manifest, and size and hash of every file."""
    try:
        for name, about in contents(path)["files"].items():
            if _hash(os.path.join(path, name)) != about["sha256"]:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return _described(error)
    return None


def contents(path: str) -> dict[str, Any]:
    """The manifest of a checkpoint that is complete: every file is there, in its size. Raises OSError or ValueError."""
    found = manifest.read(path)
    at = folder.place(path)
    if at is not None and at[0] != found["step"]:
        raise ValueError(f"{manifest.NAME} is of step {found['step']}")
    for name, about in found["files"].items():
        status = os.lstat(os.path.join(path, name))
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{name} is not a file of its own (a link?)")
        if status.st_size != about["size"]:
            raise ValueError(f"{name} has {status.st_size} bytes, not {about['size']}")
    return found


def _described(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{os.path.basename(str(error.filename))}: {error.strerror}"
    return str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _hash(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
