"""One process per rank on this machine, and their ends tied together. Imports no torch.

In: a command, the number of ranks, extra environment. Out: an exit code that is 0 only if every rank's was.
A rank that fails ends the others; ranks die with the launcher, even when it is killed (on Linux by the kernel, elsewhere
by watching the parent's id); Ctrl-C and SIGTERM are passed on once, as SIGTERM, a second Ctrl-C kills. Ranks live in sessions of
their own, or a terminal would deliver Ctrl-C to them a second time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NoReturn

from .lifeline import LAUNCHER, Undertaker, bound_to_this, kill_marked

__all__ = ["ENVIRONMENT", "OVER", "STORE", "environment", "launch", "run_bound"]

STORE = "FORGATHER_STORE"  # path of the file the ranks meet in
OVER = ".over"  # what the path of a file ends with that is there once a rank has failed: what follows is no request to stop
CRASHED, INTERRUPTED = 4, 130  # exit codes, see the command line's contract
GRACE_SECONDS = 1.5  # from SIGTERM to SIGKILL for the ranks left behind by one that failed
SAVING_SECONDS = 30.0  # for the others to end after an interrupt, once the first rank has ended
POLL_SECONDS = 0.02

ENVIRONMENT = {"MKL_CBWR": "AUTO,STRICT"}
if "OMP_WAIT_POLICY" not in os.environ:  # the user has not decided
    ENVIRONMENT["GOMP_SPINCOUNT"] = "10000"
if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # its older name
    ENVIRONMENT["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
"""What every rank runs under unless the user has set it; read when torch is loaded, or at its first matrix product.

Threads that wait spin for some microseconds, then sleep. By default they spin for milliseconds, and beside another busy
program each of a small model's thousand parallel regions per step then lasts a time slice; if they never spin, waking up
costs a third to three quarters of a step (benchmarks/LOG.md). And MKL's matrix products do not depend on the number of
threads: on processors with AVX-512 they do otherwise, and a rank of two has half of the threads of a single process
(Intel's "conditional numerical reproducibility", strict). Expandable segments halve what a GPU's allocator reserves beyond
what it has given out (benchmarks/LOG.md)."""


def launch(command: Sequence[str], world: int, env: Mapping[str, str] | None = None) -> int:
    """Run `command` once per rank with RANK, LOCAL_RANK, WORLD_SIZE and LOCAL_WORLD_SIZE set; wait for all.

    Rank 0 has this process's stdout and stderr, the others its stderr only. OMP_NUM_THREADS is cores / ranks unless
    set. Returns 0, the exit code of the first rank that failed, 4 if that died of a signal, 130 if of an interrupt.
    """
    with tempfile.TemporaryDirectory(prefix="forgather-") as folder, Signals() as signals:
        common = {
            **environment(world),
            **_loopback(),
            **os.environ,
            **(env or {}),
            STORE: os.path.join(folder, "store"),
        }
        common |= {LAUNCHER: str(os.getpid()), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        ranks: list[subprocess.Popen] = []
        mark = f"{STORE}={common[STORE]}"
        try:
            for rank in range(world):
                ranks.append(_start(command, common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, quiet=rank > 0))
            with Undertaker(mark, (process.pid for process in ranks)):
                return _wait(ranks, signals, common[STORE] + OVER)
        finally:
            _send(ranks, signal.SIGKILL)  # nobody is left but after an error of our own, or a second Ctrl-C
            for process in ranks:
                process.wait()
            kill_marked(mark)  # what ranks have started and left


def run_bound(command: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command to its end and return its exit code; it dies with this process."""
    return subprocess.run(command, env=env, preexec_fn=bound_to_this(), check=False).returncode


def end_process(code: int) -> NoReturn:
    """End a rank without tearing Python down: gloo's threads, destroyed there, now and then abort a rank that has done
    everything (`terminate called without an active exception`), and the run would count as failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _start(command: Sequence[str], env: Mapping[str, str], quiet: bool) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else None,
        start_new_session=True,
        preexec_fn=bound_to_this(),
    )


def _wait(ranks: list[subprocess.Popen], signals: Signals, over: str) -> int:
    """Until all have ended: the first failure decides, and ends the rest, who find a file `over`."""
    code, deadline, cut_short = 0, float("inf"), False
    while any(process.returncode is None for process in ranks):
        if signals.interrupts > 1:
            return INTERRUPTED
        if signals.received:
            signals.received.pop()
            _send(ranks, signal.SIGTERM)  # while Python starts, SIGINT ends it with a traceback for each rank
        for process in ranks:
            returncode = _ended(process)
            if returncode is None:
                continue
            asked = -returncode in (signal.SIGINT, signal.SIGTERM)
            ended = INTERRUPTED if asked and signals.interrupted else _exit_code(returncode)
            by_itself = not asked or not (code or signals.interrupted)
            if returncode < 0 and by_itself and time.monotonic() < deadline:
                _say_killed(ranks.index(process), -returncode)
            if ended == INTERRUPTED or (signals.interrupted and not ended):
                cut_short = cut_short or asked
                deadline = min(deadline, time.monotonic() + (GRACE_SECONDS if asked else SAVING_SECONDS))
                code = code or ended
            elif ended and not code:
                code, deadline = ended, time.monotonic() + GRACE_SECONDS
                with contextlib.suppress(OSError):
                    os.close(os.open(over, os.O_CREAT))
                _send(ranks, signal.SIGTERM)
        if time.monotonic() > deadline:
            _send(ranks, signal.SIGKILL)
        time.sleep(POLL_SECONDS)
    if cut_short and code == INTERRUPTED:  # ranks save, and say so, from the first step on; before they just die
        print("interrupted before the first step: nothing to save", file=sys.stderr, flush=True)
    return code


def _ended(process: subprocess.Popen) -> int | None:
    """The exit code of a rank that has just ended, after killing what it has left behind in its process group."""
    if process.returncode is not None:
        return None
    if hasattr(os, "waitid"):  # macOS has it from Python 3.13 on
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
    return process.poll()


def _say_killed(rank: int, number: int) -> None:
    name = signal.Signals(number).name
    often = " (often by the system, when the host's memory is full)" if number == signal.SIGKILL else ""
    print(f"error: rank {rank} was killed by {name}{often}", file=sys.stderr, flush=True)


def _exit_code(returncode: int) -> int:
    """Of one rank, in our contract: negative, or above 128 from a shell, is death by a signal."""
    number = -returncode if returncode < 0 else returncode - 128
    if number <= 0:
        return returncode
    return INTERRUPTED if number == signal.SIGINT else CRASHED


def _send(ranks: list[subprocess.Popen], number: int) -> None:
    """To every rank that is still there, and to what it has started (a rank leads its own process group)."""
    for process in ranks:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)


class Signals:
    """Collects SIGINT and SIGTERM while ranks run (in the main thread: elsewhere Python does not let us)."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.interrupts = 0
        self.interrupted = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._take)
        return self

    def _take(self, number: int, _frame: object) -> None:
        self.interrupts += number == signal.SIGINT
        if not self.interrupted:
            self.received.append(number)
        self.interrupted = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned


def environment(world: int) -> Mapping[str, str]:
    """What a rank of `world` runs under here unless the user has set it: `ENVIRONMENT`, and its share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"OMP_NUM_THREADS": str(max(1, cores // world)), **ENVIRONMENT}


def _loopback() -> Mapping[str, str]:
    """All ranks are here: gloo need not look up this machine's name, which fails on some."""
    return {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
