"""Which runs are meant: run directories, folders of them such as a sweep's, and patterns, in the order they are named."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence

from ..dsl import ConfigError
from ..dsl.reading import read_json
from ..errors import UserError
from .run import is_run

__all__ = ["find_runs"]

DEEPEST = 3  # folders between the one that is named and a run
MOST_FOLDERS = 20_000  # looked at below one that is named
SWEEP = "sweep.json"
INSIDE = ("checkpoints", "source", "model", "control")  # folders of a run


def find_runs(places: Sequence[str]) -> list[str]:
    """Paths of run directories, each once. Raises UserError for every place that leads to none."""
    found: dict[str, str] = {}
    wrong: list[str] = []
    for place in places:
        runs = [run for path in _matching(place) for run in _runs_in(path)]
        if not runs:
            wrong.append(_why_none(place))
        for run in runs:
            found.setdefault(os.path.realpath(run), run)
    if wrong:
        raise UserError("\n".join(wrong))
    return list(found.values())


def _matching(place: str) -> list[str]:
    if os.path.lexists(place) or not glob.has_magic(place):
        return [place]
    return sorted(glob.glob(place, recursive=True))


def _runs_in(path: str) -> Iterator[str]:
    path = os.path.normpath(path)
    if is_run(path):
        yield path
        return
    for seen, (folder, names, _) in enumerate(os.walk(path)):
        if seen > MOST_FOLDERS:
            raise UserError(f"{path} has more than {MOST_FOLDERS:,} folders; name one closer to the runs")
        below = os.path.relpath(folder, path).count(os.sep) + (folder != path)
        dropped = _dropped(folder)
        runs = {name for name in names if is_run(os.path.join(folder, name))}
        names[:] = [name for name in names if name not in dropped]
        runs -= dropped
        yield from (os.path.join(folder, name) for name in sorted(runs))
        inner = [name for name in names if name not in runs and name not in INSIDE and not name.startswith(".")]
        names[:] = sorted(inner) if below < DEEPEST else []


def _dropped(folder: str) -> set[str]:
    """Runs of a sweep that its list no longer has: they lie there from an earlier call."""
    path = os.path.join(folder, SWEEP)
    if not os.path.lexists(path):
        return set()
    try:
        members = read_json(path).get("members", [])
        return {str(member["run"]) for member in members if member.get("dropped")}
    except (ConfigError, AttributeError, KeyError, TypeError):
        return set()  # a broken list says nothing about the runs


def _why_none(place: str) -> str:
    if not os.path.lexists(place):
        what = "matches nothing" if glob.has_magic(place) else "does not exist"
        return f"{place} {what}; write run directories, folders of them, or a pattern such as 'runs/*'"
    if not os.path.isdir(place):
        return f"{place} is a file; write the folder of a run, which has a config.json"
    return f"{place} holds no run: no folder in it, down to {DEEPEST} levels, has a config.json"
