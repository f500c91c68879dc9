"""Sweeps on the command line: targets that name many experiments, `--seeds` and `--sweep`, and how their members are shown."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

from ..dsl import ConfigError, LoadError, load
from ..dsl.load import split_target
from ..errors import UserError
from ..runs.members import Member, batches, changed, described, is_adaptive, is_sweep_source
from ..runs.run import is_run
from ..runs.sweep_index import is_sweep, read
from .output import print_json, print_table
from .targets import find, overridden, parse_settings, printing_to_stderr

Change = Callable[[Any], Sequence[Any]]


def source_of(target: str) -> Any:
    """What a target names if it names many experiments, else None. Raises LoadError: it is the directory of a sweep."""
    if is_sweep(target) and not is_run(target):
        begun = read(target).target
        hint = f"`run {begun} --out {target}` goes on with it" if begun else "the script that made it goes on with it"
        raise LoadError(f"{target} is a sweep: {hint}, `ls {target}` lists its runs")
    if is_run(target) or not split_target(target)[1]:
        return None
    with printing_to_stderr():
        found = load(target)
    return found if is_sweep_source(found) else None


def members(target: str, source: Any, settings: Sequence[str]) -> list[Member]:
    """Those of a sweep with `--set` applied, to be shown. Raises ConfigError for one that makes them from results."""
    if is_adaptive(source):
        raise ConfigError(f"{target} makes its experiments from the results of earlier ones; only `run` can tell which")
    with printing_to_stderr():
        items = next(batches(source, target))
        return described(changed(items, changes(settings, [])))


def changes(settings: Sequence[str], grid: Sequence[str]) -> Change:
    """From an experiment to those of the grid that `--sweep` options span over it, with `--set` below."""
    values = parse_settings(settings)
    axes = [[(path, value) for value in options] for path, options in _axes(grid)]

    def change(experiment: Any) -> list[Any]:
        base, made, problems = overridden(experiment, values), [], {}
        for point in itertools.product(*axes):
            try:
                made.append(overridden(base, dict(point), "--sweep"))
            except ConfigError as error:
                problems |= dict.fromkeys(error.problems)
        if problems:
            raise ConfigError("\n".join(problems), list(problems))
        return made

    return change


def _axes(grid: Sequence[str]) -> list[tuple[str, list[str]]]:
    axes, problems = [], []
    for text in grid:
        path, equals, values = text.partition("=")
        options = split_values(values)
        if not equals or not path.strip() or not all(options):
            problems.append(f"--sweep {text!r}: write --sweep path=value,value, such as --sweep optimizer.lr=1e-3,3e-3")
        axes.append((path.strip(), options))
    twice = [path for number, (path, _) in enumerate(axes) if path in [other for other, _ in axes[:number]]]
    problems += [f"--sweep {path}: it stands twice; write all of its values behind one --sweep" for path in twice]
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return axes


def split_values(text: str) -> list[str]:
    """At commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if char == "," and depth == 0 and not quote:
            parts.append("")
            continue
        quote = "" if char == quote else char if char in "\"'" and not quote else quote
        depth += (char in "([{") - (char in ")]}") if not quote else 0
        parts[-1] += char
    return [part.strip() for part in parts]


def parse_seeds(text: str) -> list[int] | int:
    """`0,1,2`: these seeds; `3`: so many. Raises UserError."""
    parts = text.split(",")
    try:
        numbers = [int(part) for part in parts if part.strip()]
        if numbers and min(numbers) >= (0 if len(parts) > 1 else 1):
            return numbers if len(parts) > 1 else numbers[0]
    except ValueError:
        pass
    raise UserError(f"--seeds {text!r}: write the seeds, such as --seeds 0,1,2, or how many, such as --seeds 3")


def run_sweep(
    target: str, source: Any, settings: Sequence[str], grid: Sequence[str], seeds: str | None, **how: Any
) -> None:
    """Train all that the command line names. `source` None: the target is one experiment."""
    from ..runs.sweep import Sweep

    change, shrink, trust = changes(settings, grid), how.pop("smoke"), how["trust"]
    name = split_target(target)[1].replace(".", "_")
    if source is None:
        experiment = find(target, (), trust)
        kind = "sweep" if grid else "seeds"
        source, name = [experiment], f"{type(experiment).__name__}-{kind}"
    if shrink:
        change, name = _smaller(change), f"{name}-smoke"
        how["resume"] = "never" if how["resume"] == "auto" and how["out"] is None else how["resume"]

    wanted = None if seeds is None else parse_seeds(seeds)
    Sweep(source, seeds=wanted, change=change, name=name, target=target, **how).fit()


def _smaller(change: Change) -> Change:
    from ..plan.smoke import smoke

    return lambda experiment: [smoke(one)[0] for one in change(experiment)]


def rows(folder: str) -> list[dict[str, Any]]:
    """The members of a sweep's directory, as `ls` lists experiments: run directories are targets."""
    found = []
    for entry in read(folder).members:
        state = (
            entry.state
            + (f": {entry.reason}" if entry.reason else "")
            + (", no longer listed" if entry.dropped else "")
        )
        row = {
            "target": os.path.join(folder, entry.run),
            "doc": f"{entry.label}  {state}",
            "bases": [],
            "abstract": False,
        }
        found.append(
            {
                **row,
                "missing": [],
                "error": None,
                "kind": "",
                "state": entry.state,
                "label": entry.label,
                "seed": entry.seed,
            }
        )
    return found


def show_members(found: Sequence[Member], target: str, json: bool) -> None:
    """Each with its digest; `show` of one of them is that of its class with the same `--set`."""
    if json:
        listed = [{"label": m.label, "digest": m.digest, "seed": m.experiment.seed, "group": m.group} for m in found]
        print_json({"target": target, "members": listed})
    else:
        rows = [(member.label, type(member.experiment).__name__, member.digest[:8]) for member in found]
        print_table(("experiment", "class", "digest"), rows)
