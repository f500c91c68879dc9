"""The process that tries emitted files: run by path, under `python -I`, it has torch alone and forks once per file.

Standard input brings a line of JSON per job, standard output gives one back per result, in the order in which they end.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Job = dict[str, Any]  # folder: str; timeout: seconds; the rest is `attempt`'s


@dataclass
class Fork:
    """A job that runs."""

    job: Job
    pid: int
    end: int  # a pipe that closes when the fork is gone
    deadline: float


class Server:
    """Reads jobs, forks one process for each, at most `workers` at a time, and tells how each ended."""

    def __init__(self, workers: int, attempt: Callable[[Job], None]) -> None:
        self.workers, self.attempt = workers, attempt
        self.waiting: list[Job] = []
        self.running: dict[int, Fork] = {}
        self.open, self.rest = True, b""

    def serve(self) -> None:
        """Until standard input has ended; what still runs then is ended too, for nobody waits for it."""
        while self.open:
            while self.waiting and len(self.running) < self.workers:
                self.start(self.waiting.pop(0))
            ends = [fork.deadline for fork in self.running.values()]
            patience = max(0.0, min(ends) - time.monotonic()) if ends else None
            ready, _, _ = select.select([0, *self.running], [], [], patience)
            for end in ready:
                if end:
                    self.finish(self.running.pop(end), late=False)
                else:
                    self.read()
            for fork in [fork for fork in self.running.values() if fork.deadline <= time.monotonic()]:
                self.finish(self.running.pop(fork.end), late=True)
        for fork in self.running.values():
            os.killpg(fork.pid, signal.SIGKILL)

    def read(self) -> None:
        """Takes in what has come, which may end within a line."""
        more = os.read(0, 1 << 16)
        self.open = bool(more)
        *lines, self.rest = (self.rest + more).split(b"\n")
        self.waiting += [json.loads(line) for line in lines]

    def start(self, job: Job) -> None:
        """Forks; the fork writes its result into the job's folder."""
        end, held = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                os.close(end)
                log = os.open(os.path.join(job["folder"], "log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                nothing = os.open(os.devnull, os.O_RDONLY)
                for source, target in ((nothing, 0), (log, 1), (log, 2)):
                    os.dup2(source, target)
                self.attempt(job)
                os._exit(0)
            finally:
                os._exit(1)
        os.close(held)
        self.running[end] = Fork(job, pid, end, time.monotonic() + job["timeout"])

    def finish(self, fork: Fork, *, late: bool) -> None:
        """Tells how a fork ended: its own result, or what killed it."""
        os.close(fork.end)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(fork.pid, signal.SIGKILL)  # if late; and whatever it may have left behind
        _, status = os.waitpid(fork.pid, 0)
        result: dict[str, Any] = {"died": f"did not end within {fork.job['timeout']:g} s"}
        if not late:
            code = os.waitstatus_to_exitcode(status)
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended by itself with code {code}"
            result = {"died": how}
            with (
                contextlib.suppress(OSError, ValueError),
                open(os.path.join(fork.job["folder"], "result.json")) as file,
            ):
                result = json.load(file)
        os.write(1, json.dumps({"folder": fork.job["folder"], **result}).encode() + b"\n")


def main(setup: dict[str, Any]) -> None:
    """Shuts everything but torch out, imports torch and what compares, then serves."""
    sys.dont_write_bytecode = True
    own = types.ModuleType("codegen")
    own.__path__ = [os.path.dirname(os.path.abspath(__file__))]
    sys.modules["codegen"] = own  # this folder without its __init__, which imports the tracer
    from codegen import isolation

    allowed = isolation.torch_alone() | {"codegen"}
    sys.path += [path for path in setup["path"] if path not in sys.path]
    isolation.guard(allowed)
    from codegen.attempt import attempt

    allowed.discard("codegen")
    for name in [name for name in sys.modules if name.partition(".")[0] == "codegen"]:
        del sys.modules[name]

    def isolated(job: Job) -> None:
        allowed.update(isolation.with_needs(job["requirements"]))  # in the fork alone
        attempt(job)

    print("{}", flush=True)  # ready
    Server(setup["workers"], isolated).serve()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
