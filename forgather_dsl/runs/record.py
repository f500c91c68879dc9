"""What a run directory says of a run, as far as it can be read: settings, records, where it ran, how it ended.

For comparing many runs: no torch, nothing of the directory is executed or imported, and a broken file costs a line in
`problems`, not the report. Numbers that are not finite stay as they are; what is no number is no value.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from ..dsl import ConfigError
from ..dsl.reading import read_json
from ..errors import UserError
from ..train import control, metrics
from .run import is_run

__all__ = ["Record", "number"]

MOST_SETTINGS_BYTES = 16 * 2**20
EVALUATED = "eval_"  # how the names of results on held-out text begin


class Record:
    """A run, read once. Raises UserError when the folder is no run directory."""

    def __init__(self, path: str) -> None:
        if not is_run(path):
            raise UserError(f"{path} is not a run directory: it has no config.json")
        self.path = path
        self.problems: list[str] = []
        self.environment = self._json("environment.json")
        self.plan = self._json("plan.json")
        self.built = str(self._json("config.json").get("$type", ""))  # module:Class
        self.settings = self._settings()
        self.records = list(self._records())
        self.starts = [r for r in self.records if "data_fingerprint" in r]
        self.steps = [r for r in self.records if "loss" in r and "tokens" in r]

    def __repr__(self) -> str:
        return f"Record({self.path!r})"

    @property
    def target(self) -> str:
        """What was run: `file.py:Class`, or the folder's name where it is not told."""
        told = self.environment.get("target")
        return told if isinstance(told, str) and told else os.path.basename(os.path.normpath(self.path))

    @property
    def name(self) -> str:
        """The class that was run, also where the target was a list of several."""
        for told in (self.built, self.target):
            name = told.rpartition(":")[2]
            if re.fullmatch(r"[A-Za-z_][\w.]*", name):
                return name
        return os.path.basename(os.path.normpath(self.path))

    @property
    def seed(self) -> str:
        """As the settings say it."""
        return self.settings.get("seed", "?")

    @functools.cached_property
    def state(self) -> str:
        """finished, running, silent, stopped, failed, died; unfinished where no heartbeat tells more."""
        try:
            found = control.status(self.path)["state"]
        except (UserError, ConfigError, OSError, ValueError):
            found = "not started"
        if self.progress >= 1 and found not in ("running", "silent"):
            return "finished"
        return ("unfinished" if self.records else found) if found in ("not started", "finished") else found

    @property
    def finished(self) -> bool:
        """Whether it has come to the end that its configuration sets."""
        return self.state == "finished"

    @property
    def progress(self) -> float:
        """0 to 1, as of the last record of a step."""
        done = number(self.steps[-1].get("progress")) if self.steps else None
        return done if done is not None and math.isfinite(done) else 0.0

    @property
    def start(self) -> dict[str, Any]:
        """What the first lines of its starts say, the last one first: data, device, ranks."""
        return {key: value for start in self.starts for key, value in start.items()}

    def last(self, name: str) -> float | None:
        """The newest value of a record's field."""
        return next((v for r in reversed(self.records) if (v := number(r.get(name))) is not None), None)

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every record that has a number of this name, in the order of steps, each step once."""
        found = {step_of(r): v for r in self.records if (v := number(r.get(name))) is not None}
        return sorted(found.items())

    @functools.cached_property
    def evaluated(self) -> tuple[str, ...]:
        """Names of results on held-out text, in the order of the file."""
        names = [n for r in self.records if "data_fingerprint" not in r for n in r if n.startswith(EVALUATED)]
        return tuple(n for n in dict.fromkeys(names) if self.last(n) is not None)

    @functools.cached_property
    def clock(self) -> list[tuple[int, float, float]]:
        """(step, tokens, seconds) as of every record of a step; the seconds are those of the steps that count, without
        evaluation, samples and what was trained twice."""
        out, seconds, before = [], 0.0, 0
        for record in self.steps:
            step, each, tokens = (
                step_of(record),
                number(record.get("step_seconds")),
                number(record.get("tokens")),
            )
            if step <= before or each is None or tokens is None or not math.isfinite(each + tokens):
                continue
            seconds, before = seconds + each * (step - before), step
            out.append((step, tokens, seconds))
        return out

    def at(self, step: int) -> tuple[float, float]:
        """Tokens and seconds at a step, between records in proportion; of a run without records (0, 0)."""
        before = (0, 0.0, 0.0)
        for known in self.clock:
            if known[0] >= step:
                share = (step - before[0]) / (known[0] - before[0])
                return before[1] + share * (known[1] - before[1]), before[2] + share * (known[2] - before[2])
            before = known
        return before[1], before[2]

    def _json(self, name: str) -> dict[str, Any]:
        path = os.path.join(self.path, name)
        if not os.path.lexists(path):
            return {}
        try:
            found = read_json(path)
        except ConfigError as error:
            self.problems.append(str(error))
            return {}
        if isinstance(found, dict):
            return found
        self.problems.append(f"{path} is not a JSON object")
        return {}

    def _settings(self) -> dict[str, str]:
        """Path to text, from snapshot.txt."""
        path = os.path.join(self.path, "snapshot.txt")
        text = self._tried(path, lambda: _text(path))
        pairs = [line.partition(" = ") for line in (text or "").splitlines()]
        return {path: value for path, sign, value in pairs if sign}

    def _records(self) -> Iterator[dict[str, Any]]:
        path = os.path.join(self.path, "metrics.jsonl")
        found = metrics.read(path) if os.path.isfile(path) else iter(())
        while True:
            try:
                record = next(found, None)
            except (UserError, OSError) as error:
                self.problems.append(f"{error}; what stands after it is left out")
                return
            if record is None:
                return
            yield record

    def _tried(self, path: str, read: Callable[[], str]) -> str | None:
        try:
            return read()
        except (OSError, ValueError) as error:
            self.problems.append(f"{path} cannot be read: {error}")
            return None


def number(value: object) -> float | None:
    """A value as a number, if it is one."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def step_of(record: dict[str, Any]) -> int:
    """Of a record; 0 where it says none."""
    found = record.get("step", 0)
    return found if isinstance(found, int) else 0


def _text(path: str) -> str:
    if not os.path.isfile(path):
        raise ValueError("it is no ordinary file")
    if os.path.getsize(path) > MOST_SETTINGS_BYTES:
        raise ValueError(f"it has more than {MOST_SETTINGS_BYTES:,} bytes")
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
