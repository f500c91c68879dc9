"""Everything the language can complain about. Each message says what is wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence

_HERE = os.path.dirname(__file__)


class ConfigError(TypeError):
    """An experiment or component is described wrongly. `problems` holds every one that was found."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class UnknownField(ConfigError, AttributeError):
    """A name that the class does not have; the message suggests the nearest ones."""


class MissingValue(ConfigError):
    """A `REQUIRED` field was read before anything filled it."""


class Cycle(ConfigError):
    """Derived fields that need each other."""


class PatchError(ConfigError):
    """A `patch` found something else than what it patches: the class is a mixin, or the order of bases is wrong."""


class Frozen(ConfigError, AttributeError):
    """Assignment to a field of an instance."""


class LoadError(ConfigError):
    """A target that cannot be found or imported."""


class Untrusted(ConfigError):
    """Data from a file asked for something that would run code."""


def suggest(name: str, known: Iterable[str], noun: str = "fields") -> str:
    """`; did you mean 'lr'?`, or the whole list when nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; {noun}: {', '.join(names)}" if names else ""


def caller(depth: int = 2) -> tuple[str, int]:
    """File and line of the nearest frame outside the language itself."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame.f_code.co_filename, frame.f_lineno


def short_path(file: str) -> str:
    """Relative to the working directory when that is shorter."""
    try:
        relative = os.path.relpath(file)
    except ValueError:  # another drive on Windows
        return file
    return relative if len(relative) < len(file) else file


def place(file: str, line: int | None) -> str:
    """`file:line`, as editors and terminals link it."""
    return f"{short_path(file)}:{line}" if line else short_path(file)
