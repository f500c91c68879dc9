"""What the reading verbs say about experiments, as plain data: `show`, `explain`, `diff`. `app` prints it."""

from __future__ import annotations

from typing import Any

from ..dsl import ConfigError, Lazy, diff, explain, snapshot, walk
from .targets import find, find_checked, is_abstract

Row = dict[str, Any]


def values(target: str, settings: list[str]) -> tuple[Lazy[Any], dict[str, str]]:
    """The experiment, and path to text of every value. What an abstract class leaves open says REQUIRED.

    Raises:
        ConfigError: a class that is meant to run is incomplete or contradicts itself.
    """
    found = find(target, settings)
    if is_abstract(found):
        return found, _open_values(found)
    found = find_checked(target, settings)
    lines = [line.partition(" = ") for line in snapshot(found).splitlines()]
    return found, {path: text for path, _, text in lines}


def _open_values(found: Lazy[Any]) -> dict[str, str]:
    out: dict[str, str] = {}
    for entry in walk(found, strict=False):
        if not entry.path:
            continue
        if entry.error is not None:
            out[entry.path] = "REQUIRED"
        elif entry.shared is not None:
            out[entry.path] = f"the same as {entry.shared}"
        else:
            out[entry.path] = type(entry.value).__name__ if isinstance(entry.value, Lazy) else repr(entry.value)
    return out


def said_by(found: Lazy[Any], path: str) -> str:
    """`Class (file:line)` of whoever decided the value at `path`; empty when nobody did."""
    try:
        said = explain(found, path)
    except ConfigError:
        return ""
    if not said or (said[0].who == "given" and not said[0].where):  # every value of a run is given by its file
        return ""
    return f"{said[0].who} ({said[0].where})" if said[0].where else said[0].who


def explained(target: str, path: str, settings: list[str]) -> list[Row]:
    """Every say in a value, the winner first. Raises ConfigError for a path that does not exist."""
    return [
        {"value": said.value, "who": said.who, "where": said.where} for said in explain(find(target, settings), path)
    ]


def differences(left: str, right: str, settings: list[str]) -> list[Row]:
    """What differs between two targets, by path, with both values and who set them. Settings apply to both."""
    a, b = find_checked(left, settings), find_checked(right, settings)
    return [
        {
            "path": change.path,
            "left": change.left,
            "right": change.right,
            "left_by": said_by(a, change.path) if change.left is not None else "",
            "right_by": said_by(b, change.path) if change.right is not None else "",
        }
        for change in diff(a, b)
    ]
