"""What malloc does with memory that a step frees and the next step wants again. Imports no torch."""

from __future__ import annotations

import ctypes
import os
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
THE_USERS = "MALLOC_", "GLIBC_TUNABLES"  # how variables of the environment begin that settle the same


def keep_freed_memory() -> bool:
    """For a process that computes on its CPU: keep up to 1 GiB that is free instead of giving it back; whether it does.

    By default glibc gives the end of its heap back as soon as twice the largest block ever freed is free there, and the
    kernel must clear these pages again when they are next touched. A split backward frees in W what I has allocated, all
    of it, each microbatch: 790 page faults instead of 64 at four layers of dim 256 (benchmarks/LOG.md). Tensors of over
    32 MiB, which is where glibc's own rule ends, still go back at once. Nothing is changed where the user has set MALLOC_
    variables or GLIBC_TUNABLES, or where libc has no mallopt (macOS, musl). See mallopt(3).
    """
    settled = any(name.startswith(THE_USERS) for name in os.environ)
    if settled or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {M_MMAP_THRESHOLD: 32 << 20, M_TRIM_THRESHOLD: 1 << 30, M_TOP_PAD: 64 << 20}
    return {mallopt(name, size) for name, size in settings.items()} == {1}
