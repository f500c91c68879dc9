"""Experiments as JSON and back: `$type` names the class, `$ref` a shared Lazy, every field is written out.

Reading executes nothing of the file: classes of this package are used as they are, any other class becomes an inert copy of
its nearest base in this package, unless `trust=True`. An inert copy prints, compares and trains alike, for every value is explicit.
"""

from __future__ import annotations

import functools
import importlib
import types
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .annotations import Unresolved, is_factory
from .build import import_path
from .errors import ConfigError, LoadError, Untrusted
from .lazy import Lazy, annotation_of, revive
from .load import load_class
from .pickling import path_of
from .structure import structure

PACKAGE = __name__.partition(".")[0]


def to_dict(root: Lazy[Any]) -> dict[str, Any]:
    """The resolved experiment as JSON-able data. Raises ConfigError for a value without a name (a lambda)."""
    return _out(root, "", {})


def _out(value: Any, path: str, seen: dict[int, str]) -> Any:
    if isinstance(value, Lazy):
        if id(value) in seen:
            return {"$ref": seen[id(value)]}
        seen[id(value)] = path
        cls = type(value)
        head = {"$type": path_of(cls)}
        if not _ours(cls):
            head["$base"] = path_of(next(base for base in cls.__mro__ if _ours(base)))
        if not _ours(cls) and cls.__target__ is not None and cls.__target__ != _base_target(cls):
            head["$target"] = cls.__target__ if isinstance(cls.__target__, str) else path_of(cls.__target__)
        fields = {k: _out(getattr(value, k), f"{path}.{k}" if path else k, seen) for k in cls.__fields__}
        return {**head, **fields}
    if isinstance(value, tuple):
        return [_out(item, f"{path}[{i}]", seen) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {k: _out(item, f"{path}[{k!r}]", seen) for k, item in value.items()}
    if value is None or isinstance(value, (str, int, bool, float)):
        return value
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return {"$object": path_of(value)}  # type: ignore[arg-type]
    raise ConfigError(f"{path} = {value!r} has no name that a file could hold; use an importable function or a Lazy")


def _ours(cls: type) -> bool:
    return cls.__module__ == PACKAGE or cls.__module__.startswith(PACKAGE + ".")


def _base_target(cls: type) -> Any:
    return next(base for base in cls.__mro__ if _ours(base)).__target__  # type: ignore[attr-defined]


def from_dict(data: Mapping[str, Any], *, trust: bool = False) -> Any:
    """What `to_dict` wrote.

    Args:
        trust: import the user's own classes and functions that the data names. Without it they become inert:
            building a Lazy whose target lies outside this package, or a `call`, raises Untrusted.
    """
    return _in(data, "", Any, {}, trust)


def _in(value: Any, path: str, annotation: Any, made: dict[str, Any], trust: bool) -> Any:
    if isinstance(value, Mapping) and "$ref" in value:
        if value["$ref"] not in made:
            raise ConfigError(f"{path}: refers to {value['$ref']!r}, which is not in the data before it")
        return made[value["$ref"]]
    if isinstance(value, Mapping) and "$object" in value:
        if not trust:
            raise Untrusted(f"{path}: names code ({value['$object']}); pass --trust (trust=True) to import it")
        return import_path(value["$object"]) if not value["$object"].partition(":")[0].endswith(".py") else _code(value)
    if isinstance(value, Mapping) and "$type" in value:
        return _lazy_in(value, path, made, trust)
    if isinstance(value, list):
        return (
            tuple(_in(item, f"{path}[{i}]", Any, made, trust) for i, item in enumerate(value))
            if _holds_lazy(value)
            else _leaf(value, annotation, path)
        )
    if isinstance(value, Mapping):
        return MappingProxyType({k: _in(v, f"{path}[{k!r}]", Any, made, trust) for k, v in value.items()})
    return _leaf(value, annotation, path)


def _code(value: Mapping[str, Any]) -> Any:
    from .load import load

    return load(value["$object"])


def _holds_lazy(items: list[Any]) -> bool:
    return any(isinstance(i, Mapping) or (isinstance(i, list) and _holds_lazy(i)) for i in items)


def _leaf(value: Any, annotation: Any, path: str) -> Any:
    if annotation is Any or isinstance(annotation, Unresolved) or value is None:
        return tuple(value) if isinstance(value, list) else value
    return structure(value, annotation, path)


def _lazy_in(data: Mapping[str, Any], path: str, made: dict[str, Any], trust: bool) -> Any:
    cls = _class_for(data, trust)
    values: dict[str, Any] = {}
    made_here = object.__new__(cls)
    made[path] = made_here
    for name, value in data.items():
        if name.startswith("$"):
            continue
        below = f"{path}.{name}" if path else name
        known = cls.__fields__.get(name)
        if known is None:
            raise ConfigError(f"{below}: {cls.__name__} of this version has no field {name!r}")
        annotation = annotation_of(cls, name)
        values[name] = _in(value, below, Any if is_factory(annotation) else annotation, made, trust)
    made_here.__dict__["__given__"] = revive(cls, cls.__accept_all__(values, cls.__name__)).__dict__["__given__"]
    return made_here


def _class_for(data: Mapping[str, Any], trust: bool) -> type[Lazy[Any]]:
    path = str(data["$type"])
    if _package_path(path):
        return _package_class(path)
    if trust:
        try:
            return load_class(path)  # type: ignore[return-value]
        except (LoadError, ConfigError):
            if "$target" in data:
                raise  # the thing it builds is the user's own: nothing here can stand in for it
    base = str(data.get("$base", ""))
    if not _package_path(base):
        raise Untrusted(f"{path} is not a class of {PACKAGE}; pass --trust (trust=True) to import it")
    names = tuple(n for n in data if not n.startswith("$"))
    return _inert(_package_class(base), path.rpartition(":")[2], names, "$target" in data)


def _package_path(path: str) -> bool:
    return path.partition(":")[0].partition(".")[0] == PACKAGE and ".py:" not in path


def _package_class(path: str) -> type[Lazy[Any]]:
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Lazy)):
        raise Untrusted(f"{path} is not a class that an experiment is made of")
    return found


@functools.lru_cache(maxsize=512)
def _inert(base: type[Lazy[Any]], name: str, names: tuple[str, ...], foreign: bool) -> type[Lazy[Any]]:
    """A stand-in for a class that was not imported: the nearest base of this package, plus the fields it lacks."""
    extra = [n for n in names if n not in base.__fields__]
    body: dict[str, Any] = {"__annotations__": dict.fromkeys(extra, Any), "__module__": base.__module__}
    if foreign:
        body["__build__"] = _refuse
    return types.new_class(name.rpartition(".")[2], (base,), exec_body=lambda namespace: namespace.update(body))


def _refuse(self: Any, build: Any, **runtime: Any) -> Any:
    raise Untrusted(
        f"{type(self).__name__} was read from a file and its code was not imported; pass --trust (trust=True) to build it"
    )
