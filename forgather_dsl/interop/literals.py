"""Values and names as Python source: what is plain is written out, what has a name is imported under it."""

from __future__ import annotations

import builtins
import enum
import functools
import importlib
import math
import os
from typing import Any

import torch

from ..dsl.inert import InertObject


class NotWritten(Exception):
    """A value that no source can say; the text says why and what to write instead."""


class Names:
    """The imports of a file: each object once, under a name that nothing else has."""

    def __init__(self) -> None:
        self.taken: set[str] = set(dir(builtins))
        self.imported: dict[int, tuple[str, str, str]] = {}  # id -> module, name there, name here
        self.objects: list[Any] = []  # keeps the ids alive

    def new(self, wanted: str) -> str:
        """`wanted`, or with a number where it is taken."""
        name, number = wanted, 2
        while name in self.taken:
            name, number = f"{wanted}_{number}", number + 1
        self.taken.add(name)
        return name

    def of(self, thing: Any, declared: str = "") -> str:
        """The expression for a class or function; `declared` is a path under which it was asked for.

        Raises:
            NotWritten: it has no name that an import statement finds.
        """
        if getattr(builtins, getattr(thing, "__name__", ""), None) is thing:
            return thing.__name__
        module, qualname = _found(thing, declared)
        outer, *inner = qualname.split(".")
        holder = thing if not inner else getattr(importlib.import_module(module), outer)
        if id(holder) not in self.imported:
            self.objects.append(holder)
            self.imported[id(holder)] = (module, outer, self.new(outer))
        return ".".join([self.imported[id(holder)][2], *inner])

    def statements(self) -> list[str]:
        """The import statements, sorted."""
        found = (
            (f"from {module} import {name}" if module else f"import {name}") + (f" as {here}" if here != name else "")
            for module, name, here in self.imported.values()
        )
        return sorted(found, key=lambda line: (line.startswith("from"), line))


def _found(thing: Any, declared: str) -> tuple[str, str]:
    own = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    parts = declared.replace(":", ".").split(".")
    candidates: list[tuple[Any, Any]] = [
        (".".join(parts[:i]), ".".join(parts[i:])) for i in range(len(parts) - 1, 0, -1)
    ]
    if str(own[0]).startswith("torch."):  # as people write it, not where torch happens to define it
        candidates += [(public, own[1]) for public in ("torch.nn", "torch.nn.functional", "torch")]
    candidates.append(own)
    for module, qualname in candidates:
        if not module or not qualname or "<" in qualname:
            continue
        try:
            found = functools.reduce(getattr, qualname.split("."), importlib.import_module(module))
        except (ImportError, AttributeError):
            continue
        if found is thing:
            return module, qualname
    if own[1] and own[1].endswith("<lambda>"):
        raise NotWritten("a lambda has no name; write a function of the module")
    if own[1] and "<locals>" in own[1]:
        raise NotWritten(f"{own[1]} is defined inside a function, where no import finds it; move it to its module")
    raise NotWritten(f"{thing!r} has no name that an import finds; write a function or class of a module")


def literal(value: Any, names: Names) -> str:
    """The expression for a value that is no Lazy. Raises NotWritten."""
    if value is None or value is Ellipsis or isinstance(value, (bool, str, bytes)):
        return repr(value)
    if isinstance(value, enum.Enum):
        return f"{names.of(type(value))}.{value.name}"
    if isinstance(value, (int, float)):
        plain = int.__repr__(value) if isinstance(value, int) else float.__repr__(value)  # not of a subclass
        return plain if math.isfinite(value) else f'float("{plain}")'
    if isinstance(value, (torch.dtype, torch.device)):
        _import_torch(names)
        return repr(value) if isinstance(value, torch.dtype) else f"torch.{value!r}"
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, InertObject):
        raise NotWritten(
            f"{value!r} was read from a run directory and not imported; pass --trust if you know who wrote it"
        )
    if callable(value):
        return names.of(value)
    raise NotWritten(f"{value!r} is no value that source can say; write a component, a number, a text or a function")


def _import_torch(names: Names) -> None:
    if id(torch) not in names.imported:
        names.taken.add("torch")
        names.imported[id(torch)] = ("", "torch", "torch")
