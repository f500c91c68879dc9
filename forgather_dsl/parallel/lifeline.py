"""No process outlives the one that started it, whatever kills that. Imports no torch.

On Linux the kernel kills a child whose parent dies (`PR_SET_PDEATHSIG`); elsewhere a thread watches the parent's id. What a
rank has started in its turn is out of that reach: a shell of a megabyte waits at the end of a pipe for the launcher's death
and then kills the ranks' process groups and whatever carries the run's mark in its environment.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = ["LAUNCHER", "TORCHRUN", "Undertaker", "bound_to_this", "die_with_launcher", "kill_marked"]

LAUNCHER = "FORGATHER_LAUNCHER"  # process id of our launcher
TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it in its ranks
PR_SET_PDEATHSIG = 1
LINUX = sys.platform.startswith("linux")

_BURY = """
mark=$1; shift
trap '' INT TERM HUP
while read -r line; do :; done
for group; do kill -9 -- "-$group" 2>/dev/null; done
[ -d /proc ] || exit 0
for round in 1 2 3; do
  found=$(grep -lsF -- "$mark" /proc/[0-9]*/environ) || exit 0
  for file in $found; do id=${file#/proc/}; kill -9 "${id%/environ}" 2>/dev/null; done
  sleep 0.1
done
"""  # reads until the end of the pipe: nobody writes, it ends with the process that holds the other side


def bound_to_this() -> Callable[[], None] | None:
    """For `subprocess.Popen(preexec_fn=...)`: what the child runs first, to be killed when this process (thread) dies."""
    if not LINUX:
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(4)

    return bind


def die_with_launcher() -> None:
    """For a rank to call first thing: end this process when its launcher, ours or torchrun's agent, ends.

    Not for ranks of Slurm, which ends them itself, or started by hand: their parent may be a shell that leaves.
    """
    if LAUNCHER in os.environ:
        parent = int(os.environ[LAUNCHER])
    elif TORCHRUN in os.environ and hasattr(os, "getppid"):
        parent = os.getppid()
        if parent == 1 and _is_init():  # torchrun died while we started
            os._exit(4)
    else:
        return
    if LINUX:
        if LAUNCHER not in os.environ:  # ours has done it
            ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if LAUNCHER not in os.environ and os.getppid() != parent:
            os._exit(4)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _is_init() -> bool:
    """Whether process 1 is the system's, rather than a torchrun that a container runs as its only program."""
    try:
        return b"torch" not in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return True


def _watch_parent(launcher: int) -> None:
    while os.getppid() == launcher:
        time.sleep(0.5)
    os._exit(4)


class Undertaker:
    """While entered: if this process is killed, `groups` and whatever has `mark` in its environment are killed too."""

    def __init__(self, mark: str, groups: Iterable[int]) -> None:
        self.arguments = [mark, *(str(group) for group in groups)]
        self._shell: subprocess.Popen | None = None

    def __enter__(self) -> Undertaker:
        with contextlib.suppress(OSError):  # a system without sh; the kernel's binding still holds for the ranks
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _BURY, "forgather-undertaker", *self.arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._shell is not None and self._shell.stdin is not None:
            self._shell.kill()  # before the pipe is closed, or it would start its work
            self._shell.wait()
            self._shell.stdin.close()


def kill_marked(mark: str) -> None:
    """Kill every process that was started with `mark` in its environment, this one apart (where there is /proc)."""
    wanted, me = mark.encode(), os.getpid()
    for _ in range(3):  # one may be starting another
        found = [pid for pid in _processes() if pid != me and _carries(pid, wanted)]
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return
        time.sleep(0.01)


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()] if os.path.isdir("/proc") else []


def _carries(pid: int, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read().split(b"\0")
    except OSError:
        return False
