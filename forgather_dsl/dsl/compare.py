"""Two experiments side by side, and one as text: `diff`, `snapshot`, `digest`."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from .graph import holds_lazy, leaf_text, walk
from .lazy import Lazy


class Difference(NamedTuple):
    """One path whose value differs; None where a side has no such path."""

    path: str
    left: str | None
    right: str | None


def snapshot(root: Lazy[Any]) -> str:
    """The resolved configuration as `path = value` lines, in the order in which fields were first declared.

    The root itself and file locations are left out, so that the text is the same for the same configuration anywhere.
    """
    return "".join(f"{path} = {text}\n" for path, text in leaves(root).items() if path)


def leaves(root: Lazy[Any]) -> dict[str, str]:
    """Path to text for every leaf, and the type of every Lazy at its own path."""
    out: dict[str, str] = {}
    for entry in walk(root):
        if entry.shared is not None:
            out[entry.path] = f"the same as {entry.shared}"
        elif isinstance(entry.value, Lazy):
            out[entry.path] = type(entry.value).__name__
        elif not holds_lazy(entry.value):
            out[entry.path] = leaf_text(entry.value)
    return out


def digest(root: Lazy[Any]) -> str:
    """SHA-256 of the snapshot, in hex: what will run, whatever its class is called and wherever its file lies."""
    return hashlib.sha256(snapshot(root).encode()).hexdigest()


def diff(left: Lazy[Any], right: Lazy[Any]) -> list[Difference]:
    """What differs, by path, in the order of the left side."""
    a, b = leaves(left), leaves(right)
    paths = [p for p in dict.fromkeys((*a, *b)) if p]
    return [Difference(p, a.get(p), b.get(p)) for p in paths if a.get(p) != b.get(p)]
