"""Everything the language can complain about. Each message says what is wrong, where, and what to write instead."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any

_HERE = os.path.dirname(__file__) + os.sep


class ConfigError(TypeError):
    """An experiment or component is described wrongly. `problems` holds every one that was found."""

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems) or (message,)


class UnknownField(ConfigError, AttributeError):
    """A name that the class does not have; the message suggests the nearest ones."""


class MissingValue(ConfigError):
    """A `REQUIRED` field was read before anything filled it: `field` of `instance`."""

    def __init__(self, message: str, problems: Sequence[str] = (), instance: Any = None, field: str = "") -> None:
        super().__init__(message, problems)
        self.instance, self.field = instance, field


class CycleError(ConfigError):
    """Derived fields that need each other."""


class PatchError(ConfigError):
    """A `patch` found something else than what it patches: the class is a mixin, or the order of bases is wrong."""


class Frozen(ConfigError, AttributeError):
    """Assignment to a field of an instance."""


class LoadError(ConfigError):
    """A target that cannot be found or imported."""


class Untrusted(ConfigError):
    """Data from a file asked for something that would run code."""


def title(cls: type) -> str:
    """A class as messages name it, without the function it is defined in."""
    return cls.__qualname__.rpartition("<locals>.")[2]


def article(name: str) -> str:
    """`an AdamW`, `a Llama`."""
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def joined(errors: Sequence[ConfigError]) -> ConfigError:
    """Several errors as one: of their kind when they agree, with every problem on a line of its own."""
    if len(errors) == 1:
        return errors[0]
    texts = list(dict.fromkeys(text for error in errors for text in error.problems))
    kinds = {type(error) for error in errors}
    return (kinds.pop() if len(kinds) == 1 else ConfigError)("\n".join(texts), texts)


def suggest(name: str, known: Iterable[str], noun: str = "fields", exact: Sequence[str] = ()) -> str:
    """`; did you mean 'lr'?`, those in `exact` first; or the whole list when nothing is near."""
    names = sorted(set(known))
    lower = {n.lower(): n for n in names}
    near = [*exact[:3]] + [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; {noun}: {', '.join(names)}" if names else ""


def outside(depth: int = 2) -> FrameType:
    """The nearest frame that is not of the language itself."""
    frame = sys._getframe(depth)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return frame


def caller(depth: int = 2) -> tuple[str, int]:
    """File and line of the nearest frame outside the language."""
    frame = outside(depth + 1)
    return frame.f_code.co_filename, frame.f_lineno


def short_path(file: str) -> str:
    """Relative to the working directory when that is shorter."""
    try:
        relative = os.path.relpath(file)
    except (ValueError, OSError):  # another drive on Windows; a working directory that is gone
        return file
    return relative if len(relative) < len(file) else file


def place(file: str, line: int | None) -> str:
    """`file:line`, as editors and terminals link it."""
    return f"{short_path(file)}:{line}" if line else short_path(file)
