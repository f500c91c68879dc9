"""Lazies across processes: a class is named by `module:Class`, or `/abs/file.py:Class` when it was loaded from a path.

Functions and classes among the values travel the same way; memoised values stay behind.
"""

from __future__ import annotations

import functools
import os
import sys
from types import MappingProxyType
from typing import Any

from .errors import ConfigError, LoadError, place, title
from .load import load, load_class, loaded_from


def path_of(code: Any) -> str:
    """How another process finds a class or function; `__main__:Name` when only this process can."""
    origin = vars(code).get("__origin__") if hasattr(code, "__dict__") else None  # of what was read but not imported
    if origin is not None:
        return origin.type
    file = loaded_from(code.__module__)
    main = sys.modules.get("__main__")
    if file is None and code.__module__ in ("__main__", "__mp_main__") and getattr(main, "__file__", None):
        file = os.path.realpath(main.__file__)  # type: ignore[union-attr, arg-type]
    return f"{file or code.__module__}:{code.__qualname__}"


def reduce(lazy: Any) -> Any:
    """For pickle: the path of the class and what was given. Raises ConfigError for a class inside a function."""
    from .lazy import given

    cls = type(lazy)
    if "__origin__" in cls.__dict__:
        return _revive_inert, (tuple(cls.__origin__), tuple(cls.__fields__), packed(given(lazy)))
    if "<locals>" in cls.__qualname__:
        raise ConfigError(
            f"{title(cls)} ({place(*cls.__line__)}) is defined inside a function, where no other process finds it; "
            "move it to the top level of its file"
        )
    return _revive, (path_of(cls), packed(given(lazy)))


def packed(value: Any) -> Any:
    """A value in a form that pickle takes: mappings opened, code of files loaded by path named by that path."""
    if isinstance(value, (MappingProxyType, dict)):
        opened = {k: packed(v) for k, v in value.items()}
        return opened if isinstance(value, dict) else Packed(_frozen, opened)
    if type(value) is tuple:
        return tuple(map(packed, value))
    if hasattr(value, "__stands_for_code__"):
        return value
    if callable(value) and hasattr(value, "__qualname__") and loaded_from(getattr(value, "__module__", "")):
        return Packed(load, path_of(value))
    return value


class Packed:
    """Pickles as a call; what comes out of the pickle is the call's result."""

    def __init__(self, function: Any, argument: Any) -> None:
        self.call = function, (argument,)

    def __reduce__(self) -> Any:
        return self.call


def _frozen(values: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(values)


def class_at(path: str) -> Any:
    """The class that `path_of` named, in this process."""
    module, _, name = path.rpartition(":")
    main = sys.modules["__main__"]
    try:
        if module == "__main__":
            return functools.reduce(getattr, name.split("."), main)
        return load_class(path)
    except (AttributeError, LoadError) as error:
        if isinstance(error, LoadError) and module != "__main__":
            raise
        raise ConfigError(
            f"{name} is defined in a notebook or at a prompt that this process has not run; "
            "put the class into a file of its own and import it"
        ) from None


def _revive(path: str, values: dict[str, Any]) -> Any:
    from .lazy import revive

    return revive(class_at(path), values)


def _revive_inert(origin: tuple[Any, ...], fields: tuple[str, ...], values: dict[str, Any]) -> Any:
    from .inert import Origin, inert_class
    from .lazy import revive

    return revive(inert_class(Origin(*origin), fields), values)
