"""A Lazy in a notebook: what every field came to and who said so, folded under its first line. Text alone, all of it escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from .errors import ConfigError
from .explain import explain
from .graph import holds_lazy, leaf_text, walk
from .lazy import Lazy

__all__ = ["html"]

MOST_ROWS = 400


def html(root: Lazy[Any]) -> str:
    """A table of paths and values; what nothing fills says REQUIRED."""
    cls = type(root)
    lineage = " ← ".join(c.__name__ for c in cls.__mro__ if issubclass(c, Lazy) and c is not Lazy)
    doc = (cls.__dict__.get("__doc__") or "").strip().partition("\n")[0]
    rows = []
    for entry in walk(root, strict=False):
        if not entry.path or holds_lazy(entry.value):
            continue
        if entry.error is not None:
            value = "REQUIRED"
        elif entry.shared is not None:
            value = f"the same as {entry.shared}"
        else:
            value = type(entry.value).__name__ if isinstance(entry.value, Lazy) else leaf_text(entry.value)
        rows.append((entry.path, value, _said_by(root, entry.path)))
    cells = "".join(
        "<tr>" + "".join(f'<td style="text-align:left">{escape(text)}</td>' for text in row) + "</tr>"
        for row in rows[:MOST_ROWS]
    )
    left = f"<p>and {len(rows) - MOST_ROWS} more</p>" if len(rows) > MOST_ROWS else ""
    return (
        f"<details><summary><b>{escape(lineage)}</b> {escape(doc)}</summary>"
        f"<table><tr><th>path</th><th>value</th><th>set by</th></tr>{cells}</table>{left}</details>"
    )


def _said_by(root: Lazy[Any], path: str) -> str:
    try:
        said = explain(root, path)
    except ConfigError:
        return ""
    return said[0].who if said else ""
