"""`sweep.json`: which runs a sweep has, and how each of them is. Written whole by the process that sweeps; read by anybody.

A sweep's directory holds this file and, beside it, a run directory for each member.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ..dsl import LoadError
from ..dsl.reading import read_json
from ..errors import UserError

__all__ = ["DROPPED", "FAILED", "FINISHED", "INTERRUPTED", "NAME", "RUNNING", "WAITING", "Entry", "Index", "is_sweep"]

NAME = "sweep.json"
VERSION = 1
WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED = "waiting", "running", "finished", "failed", "interrupted"
STATES = (WAITING, RUNNING, FINISHED, FAILED, INTERRUPTED)
DROPPED = "no longer in the list"


@dataclass
class Entry:
    """A member. `group` is the same for those that differ in their seed alone; `dropped`: of an earlier call's list."""

    run: str  # the name of its folder
    digest: str
    label: str
    group: str
    group_label: str
    seed: int
    state: str = WAITING
    exit_code: int | None = None
    reason: str | None = None  # why it failed
    log: str = ""  # below the sweep's directory
    seconds: float | None = None  # of the last start
    dropped: bool = False


@dataclass
class Index:
    """The whole file."""

    name: str
    target: str | None
    command: list[str]
    started: str
    jobs: int = 1
    adaptive: bool = False
    state: str = RUNNING
    members: list[Entry] = field(default_factory=list)

    def find(self, digest: str) -> Entry | None:
        """The member that is this experiment."""
        return next((entry for entry in self.members if entry.digest == digest), None)

    def current(self) -> Iterator[Entry]:
        """Those of the last call's list."""
        return (entry for entry in self.members if not entry.dropped)

    def write(self, folder: str) -> None:
        """Replace the file."""
        path = os.path.join(folder, NAME)
        with open(path + ".partial", "w", encoding="utf-8") as file:
            file.write(json.dumps({"version": VERSION, **asdict(self)}, indent=1) + "\n")
        os.replace(path + ".partial", path)


def is_sweep(path: str) -> bool:
    """Whether a folder is a sweep's."""
    return os.path.lexists(os.path.join(path, NAME))


def read(folder: str) -> Index:
    """The index of a sweep. Raises UserError for what is none, or none that this version wrote."""
    path = os.path.join(folder, NAME)
    if not is_sweep(folder):
        raise UserError(f"{folder} is no sweep: it has no {NAME}")
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise LoadError(f"{path} is not a sweep's index of version {VERSION}")
    try:
        return Index(**{**_known(Index, found), "members": [_entry(one) for one in found["members"]]})
    except (KeyError, TypeError, ValueError) as error:
        raise LoadError(f"{path} is damaged: {error}; without it, the same command makes a new one") from error


def _entry(found: Any) -> Entry:
    entry = Entry(**_known(Entry, found))
    texts = (entry.run, entry.digest, entry.label, entry.group, entry.group_label, entry.log)
    if not all(isinstance(text, str) for text in texts) or entry.state not in STATES or not isinstance(entry.seed, int):
        raise ValueError(f"a member is {found!r}")
    if os.path.basename(entry.run) != entry.run or entry.run in ("", ".", ".."):
        raise ValueError(f"{entry.run!r} is no folder of it")
    return entry


def _known(kind: type, found: Mapping[str, Any]) -> dict[str, Any]:
    names = {one.name for one in fields(kind)}
    return {name: value for name, value in found.items() if name in names}
