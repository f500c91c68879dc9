"""Lazies across processes: a class is named by `module:Class`, or `/abs/file.py:Class` when it was loaded from a path."""

from __future__ import annotations

import sys
from typing import Any

from .errors import ConfigError
from .load import load_class, loaded_from


def path_of(cls: type) -> str:
    """How another process finds this class; `__main__:Name` when only this process can."""
    file = loaded_from(cls.__module__)
    return f"{file or cls.__module__}:{cls.__qualname__}"


def reduce(lazy: Any) -> Any:
    """For pickle: the path of the class and what was given; memoised values stay behind."""
    from .lazy import given

    return _revive, (path_of(type(lazy)), given(lazy))


def _revive(path: str, values: dict[str, Any]) -> Any:
    from .lazy import revive

    module, _, name = path.partition(":")
    if module == "__main__" and not hasattr(sys.modules["__main__"], name.split(".")[0]):
        raise ConfigError(
            f"{name} is defined in a script or notebook that this process has not run; "
            "put the class into a file of its own and import it"
        )
    return revive(load_class(path), values)
