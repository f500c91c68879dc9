"""Loggers that hand records on to a service: what is asked of one, and that nothing it does ends a run.

A service is an object with `start(about)`, `log(step, values, texts)` and `finish()`. `Service` makes a logger of it: numbers
that are no numbers are left out, lists get a name for each rank, and the first failure is one warning and the last call.
Imports no torch; the services' packages are imported when a run begins.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
import uuid
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from ..errors import UserError, printable
from ..specs import Experiment

__all__ = ["RunFacts", "Service", "require_services", "series_of", "started"]

REMEMBERED = "services.json"  # of a run directory: under which names services know it


class RunFacts(NamedTuple):
    """What a logger is told before the first record."""

    path: str  # the run directory
    settings: str  # `path = value` lines, as snapshot.txt
    step: int  # where this start begins
    resumed: bool

    @property
    def name(self) -> str:
        """The folder's name."""
        return os.path.basename(os.path.abspath(self.path))

    @property
    def config(self) -> dict[str, str]:
        """The settings by path."""
        pairs = (line.partition(" = ") for line in self.settings.splitlines())
        return {path: value for path, _, value in pairs}


class Backend(Protocol):
    """What a service has to offer."""

    def start(self, about: RunFacts) -> None:
        """A run begins, or goes on: the same series."""

    def log(self, step: int, values: dict[str, float], texts: dict[str, str]) -> None:
        """What is known of a step."""

    def finish(self) -> None:
        """Nothing comes after this."""


class Service:
    """A logger of records from a backend; a failing one is told once, and training goes on without it."""

    def __init__(self, name: str, backend: Backend) -> None:
        self.name, self._backend = name, backend
        self._alive = True

    def start(self, about: RunFacts) -> None:
        """Begin, or go on with, the run's series."""
        self._try(lambda: self._backend.start(about))

    def log(self, record: dict[str, Any]) -> None:
        """Hand one record on."""
        values, texts = _split(record)
        if values or texts:
            self._try(lambda: self._backend.log(record["step"], values, texts))

    def close(self) -> None:
        """The end of this start."""
        self._try(self._backend.finish)
        self._alive = False

    def _try(self, call: Callable[[], None]) -> None:
        if not self._alive:
            return
        try:
            call()
        except Exception as error:
            self._alive = False
            reason = printable(f"{type(error).__name__}: {error}")
            print(
                f"warning: {self.name} failed and gets nothing more of this start; metrics.jsonl has everything: {reason}",
                file=sys.stderr,
                flush=True,
            )


def _split(record: dict[str, Any]) -> tuple[dict[str, float], dict[str, str]]:
    """Numbers and texts of a record; the first line of a start describes data and has neither."""
    values: dict[str, float] = {}
    texts: dict[str, str] = {}
    if "data_fingerprint" in record:
        return values, texts
    for name, value in record.items():
        parts = (
            {f"{name}/rank{i}": v for i, v in enumerate(value)} if isinstance(value, (list, tuple)) else {name: value}
        )
        for part, number in parts.items():
            if name != "step" and isinstance(number, (int, float)) and math.isfinite(number):
                values[part] = float(number)
        if isinstance(value, str):
            texts[name] = value
    return values, texts


def started(logger: Any, about: RunFacts) -> Any:
    """A logger that has been told of its run, if it wants to know."""
    if hasattr(logger, "start"):
        logger.start(about)
    return logger


def series_of(about: RunFacts, service: str, fresh: Callable[[], str] | None = None) -> str:
    """Under which name a service knows the run: a new one at its first start, the same one ever after."""
    path = os.path.join(about.path, REMEMBERED)
    known: dict[str, Any] = {}
    if os.path.isfile(path):
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
        known = found if isinstance(found, dict) else {}
    if not about.resumed or not isinstance(known.get(service), str):
        known[service] = fresh() if fresh is not None else f"{about.name}-{uuid.uuid4().hex[:8]}"
        partial = f"{path}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(partial, path)
    return known[service]


def require_services(experiment: Experiment) -> None:
    """Raises UserError for loggers whose packages are not installed, all at once, with the command that installs them.

    A logger may also be a `call` of anything, which says nothing of its packages.
    """
    wanted = [(type(logger).__name__, getattr(type(logger), "__needs__", None)) for logger in experiment.loggers]
    lost = [(name, needs) for name, needs in wanted if needs is not None and importlib.util.find_spec(needs[0]) is None]
    if lost:
        told = "; ".join(f"{name}() needs the package {package}" for name, (package, _) in lost)
        extras = ",".join(dict.fromkeys(extra for _, (_, extra) in lost))
        raise UserError(
            f"loggers: {told}; install with: pip install 'forgather_dsl[{extras}]', or leave the logger out of loggers"
        )
