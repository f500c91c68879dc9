"""The only place that imports or constructs anything: one Lazy object is one built object within one memo.

A field annotated `Factory[...]` is handed over as a callable. Every failure gets a note with the path and line of the
Lazy that was being built.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeVar, cast

from .annotations import is_factory
from .errors import ConfigError, suggest
from .lazy import Lazy, annotation_of

T = TypeVar("T")
Memo = dict[int, tuple[Any, Lazy[Any]]]


def build(lazy: Lazy[T], *, memo: Memo | None = None, **runtime: Any) -> T:
    """Import the target of `lazy` and call it with its fields (children first) and `runtime`.

    Args:
        memo: shared between calls that must share objects; keeps each Lazy alive beside what it became.
        runtime: what only the caller knows (`params=`, `dim=`); may not overlap the fields.

    Raises:
        ConfigError: a field is missing, the target does not exist, or `runtime` overlaps the fields.
    """
    return _build(lazy, {} if memo is None else memo, runtime, "")


def _build(value: Any, memo: Memo, runtime: Mapping[str, Any], path: str) -> Any:
    if isinstance(value, Lazy):
        if id(value) not in memo:
            memo[id(value)] = (_construct(value, memo, runtime, path), value)  # ids are reused: keep the Lazy alive
        return memo[id(value)][0]
    if isinstance(value, tuple):
        return tuple(_build(item, memo, {}, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(value, MappingProxyType):
        return {k: _build(item, memo, {}, f"{path}[{k!r}]") for k, item in value.items()}
    return value


def _construct(lazy: Lazy[Any], memo: Memo, runtime: Mapping[str, Any], path: str) -> Any:
    cls = type(lazy)
    overlap = sorted(set(runtime) & set(cls.__fields__))
    if overlap:
        raise ConfigError(
            f"build({cls.__name__}, ...): {', '.join(overlap)} are fields; set them with replace(), not at build"
        )
    hook = getattr(lazy, "__build__", None)
    try:
        if hook is not None:
            return hook(functools.partial(_build, memo=memo, runtime={}, path=path), **runtime)
        target = import_target(cls)
        return target(**arguments(lazy, memo, path), **runtime)
    except Exception as error:
        if not getattr(error, "_at_lazy", False):
            error.add_note(f"while building {path or cls.__name__}: {lazy!r}")
            error._at_lazy = True  # type: ignore[attr-defined]
        raise


def arguments(lazy: Lazy[Any], memo: Memo, path: str = "") -> dict[str, Any]:
    """The fields of a Lazy as constructor arguments: children built, factories as callables."""
    cls, out = type(lazy), {}
    for name in cls.__fields__:
        value = getattr(lazy, name)
        below = f"{path}.{name}" if path else name
        if isinstance(value, Lazy) and is_factory(annotation_of(cls, name)):
            out[name] = LazyFactory(value, below)
        else:
            out[name] = _build(value, memo, {}, below)
    return out


class LazyFactory:
    """Makes a new object of one Lazy at each call, with what the call adds (`dim=`, `layer_index=`).

    Of the context that a caller offers, the target gets what its signature declares.
    """

    def __init__(self, lazy: Lazy[Any], path: str = "") -> None:
        self.lazy, self.path = lazy, path

    def __call__(self, **context: Any) -> Any:
        lazy = self.lazy
        choose = getattr(lazy, "__choose__", None)
        if choose is not None:
            lazy = choose(context)
        return _build(lazy, {}, _accepted(type(lazy), context), self.path)

    def __repr__(self) -> str:
        return f"LazyFactory({self.lazy!r})"


def _accepted(cls: type[Lazy[Any]], context: Mapping[str, Any]) -> dict[str, Any]:
    if hasattr(cls, "__build__"):
        return dict(context)
    declared = signature(import_target(cls))
    fields = set(cls.__fields__)
    return {k: v for k, v in context.items() if (declared is None or k in declared) and k not in fields}


@functools.cache
def signature(target: Callable[..., Any]) -> frozenset[str] | None:
    """Parameter names of a target; None when it takes any keyword."""
    parameters = inspect.signature(target).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def import_target(cls: type[Lazy[Any]]) -> Callable[..., Any]:
    """What a Lazy class builds. Raises ConfigError naming the part of the path that does not exist."""
    if cls.__target__ is None:
        raise ConfigError(
            f"{cls.__name__} does not say what it builds; write class {cls.__name__}({cls.__bases__[0].__name__}"
            '["package.module.Thing"])'
        )
    return cls.__target__ if not isinstance(cls.__target__, str) else import_path(cls.__target__, cls.__module__)


def import_path(path: str, module: str = "") -> Any:
    """`package.module.Thing` or `package.module:Thing`; a bare `Thing` is looked up in `module`."""
    parts = path.replace(":", ".").split(".")
    if len(parts) == 1 and module:
        found = getattr(importlib.import_module(module), parts[0], None)
        if found is None:
            raise ConfigError(f"{module} has no {parts[0]!r}")
        return found
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise
        for part in parts[end:]:
            if not hasattr(found, part):
                raise ConfigError(f"{path}: {name} has no {part!r}{suggest(part, public_names(found), 'it has')}")
            found = getattr(found, part)
        return found
    raise ConfigError(f"{path}: no module named {parts[0]!r}; is it installed, or misspelt?")


def public_names(thing: Any) -> list[str]:
    """What an object offers, for suggestions."""
    return [name for name in vars(cast(Any, thing)) if not name.startswith("_")]
