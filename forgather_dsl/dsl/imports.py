"""From the path in a Lazy's type argument to the object it names; the part that does not exist is named, with suggestions."""

from __future__ import annotations

import builtins
import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, place, suggest

if TYPE_CHECKING:
    from .lazy import Lazy


def import_target(cls: type[Lazy[Any]]) -> Callable[..., Any]:
    """What a Lazy class builds. Raises ConfigError naming the part of the path that does not exist."""
    if cls.__target__ is None:
        base = cls.__bases__[0].__name__
        raise ConfigError(
            f'{cls.__name__} does not say what it builds; write class {cls.__name__}({base}["package.module.Thing"])'
            f" ({place(*cls.__line__)})"
        )
    if not isinstance(cls.__target__, str):
        return cls.__target__
    writer: Any = next(base for base in cls.__mro__ if "__target__" in base.__dict__)
    try:
        found = import_path(cls.__target__, writer.__module__)
    except ConfigError as error:
        raise ConfigError(f"{writer.__name__} builds {error} ({place(*writer.__line__)})") from error
    if not callable(found):
        raise ConfigError(f"{writer.__name__} builds {cls.__target__}, which is {found!r} ({place(*writer.__line__)})")
    return found


def import_path(path: str, module: str = "") -> Any:
    """`package.module.Thing` or `package.module:Thing`; what `module` itself defines or imports comes first."""
    parts = path.replace(":", ".").split(".")
    if not all(part.isidentifier() for part in parts):
        raise ConfigError(f"{path!r}, which is not a path; write package.module.Thing")
    if module:
        around = importlib.import_module(module)
        if hasattr(around, parts[0]):
            return functools.reduce(lambda thing, part: _member(thing, part, path), parts, around)
        if len(parts) == 1 and not hasattr(builtins, path):
            raise ConfigError(
                f"{path!r}, which {module} does not define{suggest(path, public_names(around), 'it has')}"
            )
    if len(parts) == 1 and hasattr(builtins, path):
        return getattr(builtins, path)
    for end in range(max(len(parts) - 1, 1), 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise
        return functools.reduce(lambda thing, part: _member(thing, part, path), parts[end:], found)
    raise ConfigError(f"{path!r}: no module named {parts[0]!r}; is it installed, or misspelt?")


def _member(thing: Any, name: str, path: str) -> Any:
    if not hasattr(thing, name):
        where = getattr(thing, "__name__", repr(thing))
        raise ConfigError(f"{path!r}: {where} has no {name!r}{suggest(name, public_names(thing), 'it has')}")
    return getattr(thing, name)


def public_names(thing: Any) -> list[str]:
    """What an object offers, for suggestions."""
    return [name for name in vars(thing) if not name.startswith("_")] if hasattr(thing, "__dict__") else []
