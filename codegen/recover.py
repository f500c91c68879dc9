"""Constructor arguments read off an instance: what an object was made with when nobody saw it being made."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from .record import same


class NotRecovered(Exception):
    """The arguments cannot be told from the instance."""


def fields_of(value: object) -> dict[str, Any]:
    """The plain attributes of an object, slots included."""
    found: dict[str, Any] = {}
    for cls in reversed(type(value).__mro__):
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__weakref__", "__dict__") and hasattr(value, name):
                found[name] = getattr(value, name)
    found.update(getattr(value, "__dict__", {}))
    return found


def recover(value: Any) -> dict[str, Any]:
    """The arguments that would make `value` again: attributes named as the parameters, else defaults.

    Raises `NotRecovered` where a parameter has neither.
    """
    try:
        signature = inspect.signature(type(value).__init__)
    except (TypeError, ValueError):
        raise NotRecovered(f"the constructor of {type(value).__qualname__} has no signature") from None
    found: dict[str, Any] = {}
    held = fields_of(value)
    modules = getattr(value, "_modules", {})
    for name, parameter in list(signature.parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        for source in (held, modules):
            if name in source or f"_{name}" in source:
                found[name] = source.get(name, source.get(f"_{name}"))
                break
        else:
            if parameter.default is parameter.empty:
                raise NotRecovered(f"{type(value).__qualname__} keeps no attribute {name!r} to tell its argument by")
        if name in found and parameter.default is not parameter.empty and same(found[name], parameter.default):
            del found[name]
    return found


def rebuilds(value: Any, arguments: Mapping[str, Any], *, foreign: bool = False) -> bool:
    """Whether these arguments make an equal object: every plain attribute the same; of foreign ones every public one."""
    try:
        again = type(value)(**arguments)
    except Exception:
        return False
    mine, theirs = fields_of(value), fields_of(again)
    if foreign:  # what a model notes on a configuration of its library, it notes on an equal one again
        mine, theirs = ({k: v for k, v in fields.items() if not k.startswith("_")} for fields in (mine, theirs))
    if not mine and type(value).__module__ == "builtins":
        return False
    return mine.keys() == theirs.keys() and all(_alike(mine[k], theirs[k]) for k in mine)


def _alike(a: Any, b: Any) -> bool:
    if same(a, b):
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_alike(a[k], b[k]) for k in a)
    if isinstance(a, (set, frozenset)):
        return a == b
    mine, theirs = fields_of(a), fields_of(b)
    return bool(mine) and mine.keys() == theirs.keys() and all(_alike(mine[k], theirs[k]) for k in mine)
