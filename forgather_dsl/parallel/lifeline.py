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

__all__ = [
    "AGENT_SECONDS",
    "LAUNCHER",
    "TORCHRUN",
    "Undertaker",
    "bound_to_this",
    "die_with_launcher",
    "end_agent",
    "kill_marked",
]

LAUNCHER = "FORGATHER_LAUNCHER"  # process id of our launcher
TORCHRUN = "TORCHELASTIC_RUN_ID"  # torchrun sets it in its ranks
PR_SET_PDEATHSIG = 1
AGENT_SECONDS = 8.0  # for an agent of torchrun to end after its rank: with its traceback it takes up to 5
LINUX = sys.platform.startswith("linux")

_BURY = """
mark=$1; shift
bury() {
  for group; do kill -s KILL -- "-$group" 2>/dev/null; done
  [ -n "$mark" ] && [ -d /proc ] || exit 0
  for round in 1 2 3 4 5; do
    found=$(grep -lsF -- "$mark" /proc/[0-9]*/environ)
    [ -n "$found" ] || exit 0
    for file in $found; do id=${file#/proc/}; kill -s KILL "${id%/environ}" 2>/dev/null; done
    sleep 0.1
  done
  exit 0
}
trap '' INT TERM HUP
trap 'bury "$@"' URG
while read -r line; do :; done
bury "$@"
"""  # nobody writes: the pipe ends with its other side, and where a forked child keeps that open the kernel sends URG


def bound_to_this(number: int = signal.SIGKILL) -> Callable[[], None] | None:
    """For `subprocess.Popen(preexec_fn=...)`: have the child sent that signal when this process (thread) dies."""
    if not LINUX:
        return None
    prctl, parent = ctypes.CDLL(None, use_errno=True).prctl, os.getpid()

    def bind() -> None:
        prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
        if os.getppid() != parent and number == signal.SIGKILL:  # it died before we asked
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
    if LINUX and LAUNCHER in os.environ:
        return  # bound already
    if LINUX:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(4)
        if os.getpgid(0) == os.getpid() and not _BURIED:  # torchrun ends ranks, but not what they have started
            _BURIED.append(Undertaker("", [os.getpid()]).__enter__())
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def end_agent(seconds: float) -> None:
    """For a rank of torchrun that has failed and will not be started again: `seconds` later its agent is gone.

    By itself the agent ends sooner, unless the host of the rendezvous is out of reach: then it waits for ever.
    """
    left = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if TORCHRUN not in os.environ or left or not LINUX:
        return
    agent = os.getppid()
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{agent}/cmdline").read_bytes()
        if b"torchrun" not in command and b"torch.distributed" not in command:  # the agent is a program of the user's
            return
        # after that time the number could be another's: the command line is compared
        same = '[ "$(cksum < /proc/$2/cmdline)" = "$3" ]'
        text = f'n=0; while [ $n -lt "$1" ] && {same}; do sleep 0.1; n=$((n + 1)); done; {same} && kill -s KILL "$2"'
        sums = subprocess.run(["cksum"], input=command, capture_output=True, check=False)
        arguments = [str(round(seconds * 10)), str(agent), sums.stdout.decode().strip()]
        subprocess.Popen(
            ["/bin/sh", "-c", text, "forgather-agent-end", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


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


_BURIED: list[Undertaker] = []  # this process's own, if it is a rank of torchrun


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
                preexec_fn=bound_to_this(signal.SIGURG),
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
