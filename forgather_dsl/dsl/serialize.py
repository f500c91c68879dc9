"""Experiments as JSON and back: `$type` names the class, `$ref` a shared Lazy, every field is written out.

Reading executes nothing of the file: classes of this package are used as they are, any other class becomes an inert copy of
its nearest base in this package, unless `trust=True`. An inert copy prints, compares and trains alike, for every value is explicit.
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .annotations import Unresolved, fits, is_factory, lazy_class, settled
from .errors import ConfigError, LoadError, UnknownField, Untrusted, joined
from .fields import annotation_of, verify
from .graph import join
from .hints import unknown
from .inert import ADVICE, PACKAGE, InertObject, Origin, in_package, inert_class, ours, package_class
from .lazy import Lazy, given, revive
from .load import load, load_class
from .pickling import path_of
from .special import Call
from .structure import structure

MAX_DEPTH = 100  # of JSON that is read; experiments are about five deep


def to_dict(root: Lazy[Any], /) -> dict[str, Any]:
    """The resolved experiment as JSON-able data. Raises ConfigError for a value without a name (a lambda)."""
    given(root)
    return _out(root, "", {})


def _out(value: Any, path: str, seen: dict[int, str]) -> Any:
    if isinstance(value, Lazy):
        if id(value) in seen:
            return {"$ref": seen[id(value)]}
        seen[id(value)] = path
        return {
            **_head(type(value)),
            **{k: _out(getattr(value, k), join(path, k), seen) for k in type(value).__fields__},
        }
    if isinstance(value, (tuple, list)):
        return [_out(item, f"{path}[{i}]", seen) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        wrong = [k for k in value if not isinstance(k, str) or k.startswith("$")]
        if wrong:
            raise ConfigError(f"{path}: the key {wrong[0]!r} cannot be written; use strings that do not begin with $")
        return {k: _out(item, f"{path}[{k!r}]", seen) for k, item in value.items()}
    if isinstance(value, enum.Enum):
        return _out(value.value, path, seen)
    if isinstance(value, (frozenset, set)):
        return _out(tuple(sorted(value, key=repr)), path, seen)
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}  # JSON has no spelling for it
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value) and "<" not in getattr(value, "__qualname__", "<"):
        return {"$object": path_of(value)}
    raise ConfigError(f"{path} = {value!r} has no name that a file could hold; use an importable function or a Lazy")


def _head(cls: Any) -> dict[str, Any]:
    """What is written about a class; `$target` when it brings code of its own to build."""
    origin = cls.__dict__.get("__origin__")
    if origin is None and ours(cls):
        return {"$type": path_of(cls)}
    if origin is None:
        base: Any = next(base for base in cls.__mro__ if ours(base))
        target = (
            cls.__target__ if isinstance(cls.__target__, str) or cls.__target__ is None else path_of(cls.__target__)
        )
        own = cls.__target__ is not base.__target__ or any(
            getattr(cls, hook, None) is not getattr(base, hook, None)
            for hook in ("__build__", "__call_of__", "__choose__")
        )
        origin = Origin(path_of(cls), path_of(base), (target or path_of(cls)) if own else None)
    if origin.type == origin.base:
        return {"$type": origin.type}
    target = {} if origin.target is None else {"$target": origin.target}
    return {"$type": origin.type, "$base": origin.base, **target}


def from_dict(data: Mapping[str, Any], /, *, trust: bool = False) -> Any:
    """What `to_dict` wrote.

    Args:
        trust: import the user's own classes and functions that the data names. Without it they become inert:
            building a Lazy whose target lies outside this package, or a `call`, raises Untrusted.

    Raises:
        ConfigError: every problem of the data at once.
    """
    _measure(data)
    if not isinstance(data, Mapping) or "$type" not in data:
        raise ConfigError("this is not a written experiment: expected a JSON object with $type")
    return _Reader(trust).lazy(data, "")


def _measure(data: Any) -> None:
    """Refuse nesting that would exhaust the stack, numbers beyond 64 bits, and text and keys that are not text."""
    waiting = [(data, 0)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ConfigError(f"the data is nested more than {MAX_DEPTH} deep")
        if isinstance(value, Mapping):
            if not all(isinstance(key, str) and _is_text(key) for key in value):
                raise ConfigError("the data has keys that are not text")
            waiting += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, (list, tuple)):
            waiting += [(item, depth + 1) for item in value]
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ConfigError("the data has a whole number beyond 64 bits")
        elif isinstance(value, str) and not _is_text(value):
            raise ConfigError(f"the data has {value[:20]!r}, which is not text of Unicode")


def _is_text(value: str) -> bool:
    """Whether it can be written at all: halves of surrogate pairs cannot."""
    try:
        return bool(value.isascii() or value.encode() or True)
    except UnicodeEncodeError:
        return False


def _marked(value: Any) -> bool:
    """Whether a $-object stands anywhere in plain data."""
    if isinstance(value, Mapping):
        return any(key.startswith("$") for key in value) or any(map(_marked, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_marked, value))


class _Reader:
    """One pass over the data; remembers what stands at which path, for `$ref`."""

    def __init__(self, trust: bool) -> None:
        self.trust = trust
        self.made: dict[str, Any] = {}

    def value(self, data: Any, path: str, annotation: Any) -> Any:
        if not _marked(data):
            return self.leaf(data, path, annotation)
        if isinstance(data, (list, tuple)):
            return tuple(self.value(item, f"{path}[{i}]", Any) for i, item in enumerate(data))
        if "$type" in data:
            return self.lazy(data, path)
        if set(data) == {"$float"} and data["$float"] in ("inf", "-inf", "nan"):
            return float(data["$float"])
        if set(data) == {"$object"} and isinstance(data["$object"], str):
            return load(data["$object"]) if self.trust else InertObject(data["$object"])
        if set(data) == {"$ref"}:
            if not isinstance(data["$ref"], str) or data["$ref"] not in self.made:
                raise ConfigError(f"{path}: refers to {data['$ref']!r}, which the data does not hold before it")
            return self.made[data["$ref"]]
        unknown = [key for key in data if key.startswith("$")]
        if unknown:
            raise ConfigError(f"{path}: {unknown[0]!r} means nothing here; known are $type, $ref, $object and $float")
        return MappingProxyType({k: self.value(v, f"{path}[{k!r}]", Any) for k, v in data.items()})

    def leaf(self, data: Any, path: str, annotation: Any) -> Any:
        value = _frozen(data)
        if isinstance(annotation, Unresolved) or fits(value, annotation):
            return value
        if is_factory(annotation) or (isinstance(data, str) and lazy_class(annotation) is not None):
            raise ConfigError(f"{path}: {data!r} stands where an object with $type is expected")
        return structure(data, annotation, path, text=False)

    def lazy(self, data: Mapping[str, Any], path: str) -> Any:
        cls = self.class_for(data, path)
        values: dict[str, Any] = {}
        errors: list[ConfigError] = []
        for name, value in data.items():
            if name in ("$type", "$base", "$target"):
                continue
            below = join(path, name)
            try:
                if name not in cls.__fields__:
                    hint = unknown(cls, name)
                    raise UnknownField(f"{below}: {cls.__name__} of this version has no field {name!r}{hint}")
                annotation = annotation_of(cls, name)
                values[name] = settled(self.value(value, below, annotation), annotation)
                verify(cls, name, values[name])
            except ConfigError as error:
                texts = [text if text.startswith(below) else f"{below}: {text}" for text in error.problems]
                errors.append(type(error)("\n".join(texts), texts))
        if errors:
            raise joined(errors)
        self.made[path] = revive(cls, values)
        return self.made[path]

    def class_for(self, data: Mapping[str, Any], path: str) -> Any:
        head = {key: data.get(key) for key in ("$type", "$base", "$target")}
        if not all(isinstance(text, str) or (text is None and key != "$type") for key, text in head.items()):
            raise ConfigError(f"{path or 'the data'}: $type, $base and $target are text")
        kind, base, target = head["$type"] or "", head["$base"] or "", head["$target"]
        names = tuple(name for name in data if not name.startswith("$"))
        if in_package(kind):
            found = package_class(kind)
            runs = hasattr(found, "__call_of__") and not self.trust  # a `call`: its target is data
            return inert_class(Origin(kind, kind, "what its target names"), ()) if runs else found
        if self.trust:
            try:
                found = load_class(kind)
            except (LoadError, ConfigError):
                if target is not None:
                    raise  # the thing it builds is the user's own: nothing here can stand in for it
            else:
                if not issubclass(found, Lazy):
                    raise ConfigError(f"{path or 'the data'}: {kind} is not a Lazy class")
                return found
        if not in_package(base):
            raise Untrusted(f"{path or 'the data'}: {kind} is not a class of {PACKAGE}; {ADVICE}")
        if issubclass(package_class(base), Call):
            target = target or "what its target names"
        return inert_class(Origin(kind, base, target), names)


def _frozen(data: Any) -> Any:
    if isinstance(data, (list, tuple)):
        return tuple(map(_frozen, data))
    return MappingProxyType({k: _frozen(v) for k, v in data.items()}) if isinstance(data, Mapping) else data
