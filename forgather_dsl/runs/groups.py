"""Runs that differ in their seed alone are one group; what differs between groups, and only that.

In: records. Out: groups in the order of their first run, each with a name of its own, and the settings that differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .record import Record

__all__ = ["Change", "Group", "changes", "differing", "grouped"]

QUIET = (
    "log_every",
    "eval_every",
    "eval_sets",
    "save_every",
    "sample_every",
    "sampling",
    "checkpoints",
    "watchdog",
    "loggers",
)
"""Settings that change what is told and kept of a run, not what it learns or how fast."""
LONGEST_NAME = 48
NONE = "-"  # in place of a setting that a group has not


class Group(NamedTuple):
    """Runs of one configuration."""

    name: str
    settings: dict[str, str]  # those that matter, without the seed
    records: list[Record]


class Change(NamedTuple):
    """One setting of a group that is not the base's."""

    path: str
    base: str
    value: str


def grouped(records: Iterable[Record]) -> list[Group]:
    """The groups, in the order of their first runs."""
    found: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        settings = _that_matter(record)
        key = tuple(settings.items()) if settings else (record.path,)  # without settings nothing says it is the same
        found.setdefault((record.name, *key), []).append(record)
    groups = [Group(members[0].name, _that_matter(members[0]), members) for members in found.values()]
    return _named(groups)


def _that_matter(record: Record) -> dict[str, str]:
    quiet = ("seed", *QUIET)
    return {path: text for path, text in record.settings.items() if path.split(".")[0].split("[")[0] not in quiet}


def _named(groups: list[Group]) -> list[Group]:
    """Each with the class's name, and with what tells it from others of that class."""
    out: list[Group] = []
    taken: set[str] = set()
    for group in groups:
        alike = [other for other in groups if other.name == group.name]
        name = group.name
        if len(alike) > 1:
            told = [f"{path.rpartition('.')[2]}={group.settings.get(path, NONE)}" for path in differing(alike)]
            name = f"{name} {' '.join(told)}".strip() if told else f"{name} {os.path.basename(group.records[0].path)}"
        if len(name) > LONGEST_NAME:
            name = name[: LONGEST_NAME - 3] + "..."
        number, free = 2, name
        while free in taken:
            free, number = f"{name} #{number}", number + 1
        taken.add(free)
        out.append(group._replace(name=free))
    return out


def differing(groups: Sequence[Group]) -> list[str]:
    """Paths of settings that are not the same in all groups, in the order of the first that has them.

    What comes with a type that differs, and is the same wherever it is there, is left out: the type says it.
    """
    known = [group for group in groups if group.settings]
    paths = dict.fromkeys(path for group in known for path in group.settings)
    values = {path: [group.settings.get(path) for group in known] for path in paths}
    apart = {path for path, found in values.items() if len(set(found)) > 1}

    def follows(path: str) -> bool:
        above = path.rpartition(".")[0]
        while above and above not in apart:
            above = above.rpartition(".")[0]
        return bool(above) and len({value for value in values[path] if value is not None}) == 1

    return [path for path in paths if path in apart and not follows(path)]


def changes(base: Group, group: Group) -> list[Change]:
    """What a group has other than the base."""
    if not base.settings or not group.settings:
        return []
    pairs = ((p, base.settings.get(p, NONE), group.settings.get(p, NONE)) for p in differing([base, group]))
    return [Change(path, was, now) for path, was, now in pairs]
