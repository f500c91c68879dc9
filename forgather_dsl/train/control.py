"""How a run is watched and steered from another shell: small files in `RUN/control`, no server. Imports no torch.

Rank 0 keeps `heartbeat.json` up to date and looks for requests once a step; a request is a file in `control/requests`, its
answer one of the same name in `control/answers`. A request names the start it is meant for, so no later one obeys it.
Everything is written whole (a rename). `status` and `ask` are the other side.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
import uuid
from collections import deque
from typing import Any

from ..errors import UserError
from .checkpoint.folder import listed, place

FOLDER = "control"
VERBS = ("save", "stop")
SILENT_SECONDS = 30.0  # without a heartbeat, on another host, where the process cannot be looked at
_NUMBER = (int, float)
_OR_NOT = (int, float, type(None))
_BEAT: dict[str, Any] = {
    "state": str,
    "pid": int,
    "host": str,
    "process_started": (str, type(None)),
    "written": _NUMBER,
}
_BEAT |= {"moved": _NUMBER, "message": (str, type(None)), "step": _OR_NOT, "steps": _OR_NOT, "loss": _OR_NOT}
_BEAT |= {"tokens": _OR_NOT, "tokens_per_second": _OR_NOT}


class Control:
    """Rank 0's side, for one start of a run. `beat` is called from another thread than the rest."""

    def __init__(self, run: str, steps: int | None) -> None:
        self.folder = os.path.join(run, FOLDER)
        self.start = uuid.uuid4().hex
        self._requests = os.path.join(self.folder, "requests")
        for name in ("requests", "answers"):
            _emptied(os.path.join(self.folder, name))
        self._about = {"start": self.start, "host": socket.gethostname(), "pid": os.getpid()}
        self._about |= {"process_started": _started(os.getpid()), "started": time.time(), "steps": steps}
        self._step: tuple[int, float, int] | None = None  # step, loss, tokens
        self._moved = time.time()
        self._recent: deque[tuple[float, int]] = deque(maxlen=60)  # when, tokens
        self._open: list[str] = []  # requests to be answered
        self._over = False
        self.beat()

    def step(self, step: int, loss: float, tokens: int) -> None:
        """A step is done."""
        self._step, self._moved = (step, loss, tokens), time.time()

    def beat(self, state: str = "running", message: str | None = None) -> None:
        """Write the heartbeat."""
        if self._over:
            return
        self._over = state != "running"
        record: dict[str, Any] = {**self._about, "state": state, "written": time.time(), "moved": self._moved}
        if self._step is not None:
            step, loss, tokens = self._step
            if not self._recent or self._recent[-1][1] != tokens:
                self._recent.append((self._moved, tokens))
            (begin, before), (end, after) = self._recent[0], self._recent[-1]
            rate = (after - before) / (end - begin) if end > begin else None
            record |= {"step": step, "loss": loss, "tokens": tokens, "tokens_per_second": rate}
        if message is not None:
            record["message"] = message
        with contextlib.suppress(OSError):  # a full disk ends a save, not a step
            _write(os.path.join(self.folder, "heartbeat.json"), record)

    def poll(self) -> tuple[bool, bool]:
        """Whether somebody has asked to stop, and whether to save, since the last time."""
        try:
            names = [n for n in os.listdir(self._requests) if n.endswith(".json")]
        except OSError:
            return False, False
        verbs = {self._take(name) for name in names} if names else set()
        return "stop" in verbs, "save" in verbs

    def _take(self, name: str) -> str | None:
        path = os.path.join(self._requests, name)
        request = _read(path)
        with contextlib.suppress(OSError):
            os.unlink(path)
        if request is None or request.get("start") != self.start:
            return None
        self._open.append(name)
        return request.get("verb")

    def answer(self, step: int, checkpoint: str) -> None:
        """A checkpoint is committed: tell everybody who has asked."""
        self._reply({"step": step, "checkpoint": checkpoint})

    def end(self, state: str, message: str | None = None) -> None:
        """The run is over: finished, stopped or failed. Whoever still waits is told."""
        with contextlib.suppress(OSError):
            self.poll()
        self.beat(state, message)
        newest = last_checkpoint(os.path.dirname(self.folder))
        known = {} if newest is None else {"step": newest[0], "checkpoint": newest[1]}
        self._reply({"ended": state, "message": message, **known})

    def _reply(self, content: dict[str, Any]) -> None:
        names, self._open = self._open, []
        for name in names:
            with contextlib.suppress(OSError):
                _write(os.path.join(self.folder, "answers", name), content)


def status(run: str) -> dict[str, Any]:
    """What `control RUN status --json` prints. `state` is running, silent, stopped, finished, failed, died or not started."""
    if not os.path.isfile(os.path.join(run, "config.json")):
        raise UserError(f"{run} is not a run directory: it has no config.json")
    beat = _heartbeat(run)
    newest = last_checkpoint(run)
    now = time.time()
    found = {"run": run, "state": _state(beat, now)}
    found |= {key: beat.get(key) for key in ("step", "steps", "loss", "tokens", "tokens_per_second", "host", "pid")}
    found |= {"progress_age_seconds": max(0.0, now - beat["moved"]) if beat else None, "message": beat.get("message")}
    found |= {"heartbeat_age_seconds": max(0.0, now - beat["written"]) if beat else None}
    return found | {"checkpoint": newest and newest[1], "checkpoint_step": newest and newest[0]}


def _state(beat: dict[str, Any], now: float) -> str:
    if not beat:
        return "not started"
    if beat["state"] != "running":
        return beat["state"]
    if beat["host"] != socket.gethostname():
        return "running" if now - beat["written"] < SILENT_SECONDS else "silent"
    return "running" if _alive(beat["pid"], beat["process_started"]) else "died"


def refuse_second(run: str) -> None:
    """Raises UserError when a process trains in the run directory: two would write over each other's files."""
    beat = _heartbeat(run)
    if _state(beat, time.time()) == "running":
        raise UserError(
            f"{run} is being trained already, by process {beat['pid']} on {beat['host']}; wait for it, stop it with "
            f"`control {run} stop`, or choose another --out"
        )


def ask(run: str, verb: str, timeout: float) -> dict[str, Any]:
    """Ask a run to save, or to save and stop; waits for the answer: `step`, `checkpoint`, for one that has ended `ended`.

    Raises:
        UserError: nothing is running there (2), or no answer came: the process died or took longer than `timeout` s (4).
    """
    found = status(run)
    if found["state"] not in ("running", "silent"):
        raise UserError(f"{run} is not running: {told(found)}; nothing to {verb}")
    beat = _heartbeat(run)
    name = f"{uuid.uuid4().hex}.json"
    answer = os.path.join(run, FOLDER, "answers", name)
    request = os.path.join(run, FOLDER, "requests", name)
    _write(request, {"verb": verb, "start": beat.get("start")})
    end = time.monotonic() + timeout
    try:
        while time.monotonic() < end:
            reply = _read(answer)
            if reply is not None and (verb == "save" or _state_of(run) != "running"):
                return reply
            if reply is None and _state_of(run) not in ("running", "silent"):
                time.sleep(0.2)  # its answer comes after its last heartbeat
                if (reply := _read(answer)) is None:
                    raise UserError(f"{run} ended without an answer: {told(status(run))}", exit_code=4)
                return reply
            time.sleep(0.05)
    finally:
        for path in (request, answer):
            with contextlib.suppress(OSError):
                os.unlink(path)
    raise UserError(f"no answer in {timeout:g} s: {told(status(run))}; --timeout waits longer", exit_code=4)


def _state_of(run: str) -> str:
    return _state(_heartbeat(run), time.time())


def told(found: dict[str, Any]) -> str:
    """The state of a run in a few words."""
    state, where = found["state"], f"process {found['pid']} on {found['host']}"
    if state == "running":
        return f"running as {where}, last progress {found['progress_age_seconds']:.0f} s ago"
    if state == "silent":
        return f"no sign of life of {where} for {found['heartbeat_age_seconds']:.0f} s"
    if state == "died":
        return f"{where} died without a word, last seen {_ago(found['heartbeat_age_seconds'])} ago"
    if state == "not started":
        return "not started"
    return f"{state} {_ago(found['heartbeat_age_seconds'])} ago" + (
        f" ({found['message']})" if found["message"] else ""
    )


def _ago(seconds: float) -> str:
    for unit, name in ((86400, "days"), (3600, "hours"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds:.0f} s"


def last_checkpoint(run: str) -> tuple[int, str] | None:
    """Step and path of the newest committed checkpoint."""
    for path in listed(os.path.join(run, "checkpoints")):
        if (at := place(path)) is not None:
            return at[0], path
    return None


def _alive(pid: int, started: str | None) -> bool:
    """Whether the process is there, and is the same: numbers are used again."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    now = _started(pid)
    return started is None or started == now  # where there is no /proc the number has to do


def _started(pid: int) -> str | None:
    """When the kernel started a process, in its own units; None where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return "zombie" if fields[0] in "ZX" else fields[19]


def _heartbeat(run: str) -> dict[str, Any]:
    """What a run last said of itself; empty where it said nothing that makes sense."""
    beat = _read(os.path.join(run, FOLDER, "heartbeat.json")) or {}
    sound = all(isinstance(beat.get(key), kind) for key, kind in _BEAT.items())
    return beat if sound and beat["pid"] > 0 else {}


def _emptied(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for name in os.listdir(folder):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(folder, name))


def _read(path: str) -> dict[str, Any] | None:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _write(path: str, content: dict[str, Any]) -> None:
    partial = f"{path}.{os.getpid()}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(content, file)
    os.replace(partial, path)
