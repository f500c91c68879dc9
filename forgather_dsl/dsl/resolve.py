"""What a field's value is: the first provider along the MRO, then every patch above it, base to derived, then the instance's own.

Results are memoised in the instance's dict, so later reads cost a dict lookup. A Lazy that is a class default is copied
for each owner; sharing comes only from `@derived` or from passing one object twice.
"""

from __future__ import annotations

import threading
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import ConfigError, Cycle, MissingValue, place
from .words import REQUIRED, Derived, Patch

if TYPE_CHECKING:
    from .lazy import Lazy

_lock = threading.RLock()  # identity is meaning here: two threads must not resolve one field twice
_active: list[tuple[int, str, type]] = []


class Slot:
    """Non-data descriptor of one field in one class; runs once per instance, then the instance's dict answers."""

    __slots__ = ("name", "owner")

    def __init__(self, name: str, owner: type) -> None:
        self.name, self.owner = name, owner

    def __get__(self, instance: Any, cls: type) -> Any:
        return self if instance is None else resolve_field(instance, self.name, self.owner)


class Fold(NamedTuple):
    """Who says what about a field: the provider, the patches on it, and every class with a say, derived first."""

    provider: Any
    provided_by: type | None
    patches: tuple[Patch, ...]  # base to derived
    chain: tuple[type, ...]


def fold(cls: type[Lazy[Any]], name: str, start: type | None = None) -> Fold:
    """Walk the MRO from `start` (for `super()`), or from the class itself."""
    cache = cls.__dict__["__folds__"]
    key = (name, start)
    if key not in cache:
        mro = cls.__mro__[cls.__mro__.index(start) if start else 0 :]
        chain = tuple(c for c in mro if name in c.__dict__.get("__own__", ()))
        patches: list[Patch] = []
        provider, provided_by = REQUIRED, None
        for c in chain:
            value = c.__own__[name]  # type: ignore[attr-defined]
            if not isinstance(value, Patch):
                provider, provided_by = value, c
                break
            patches.append(value)
        cache[key] = Fold(provider, provided_by, tuple(reversed(patches)), chain)
    return cache[key]


def resolve_field(instance: Any, name: str, owner: type) -> Any:
    """The value of a field as seen from `owner`: the instance's class, or a base when asked through `super()`."""
    cls = type(instance)
    with _lock:
        top = fold(cls, name).chain[0] is owner
        memo = instance.__dict__
        if top and name in memo:
            return memo[name]
        key = (id(instance), name, owner)
        if key in _active:
            names = [n for _, n, _ in _active[_active.index(key) :]] + [name]
            raise Cycle(f"{cls.__qualname__}: {' -> '.join(names)}: these derived fields need each other")
        _active.append(key)
        try:
            value = _value(instance, name, owner if not top else None)
        finally:
            _active.pop()
        if value is REQUIRED:
            raise MissingValue(missing_text(cls, name))
        if top:
            memo[name] = value
        return value


def _value(instance: Any, name: str, start: type | None) -> Any:
    from .lazy import accept, given

    cls = type(instance)
    said = given(instance).get(name, REQUIRED) if start is None else REQUIRED
    if said is not REQUIRED and not isinstance(said, Patch):
        return said
    found = fold(cls, name, start)
    value = found.provider
    if isinstance(value, Derived):
        try:
            value = accept(cls, name, value.function(instance), instance)
        except AttributeError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"{cls.__qualname__}.{name}: its @derived function failed: {error}") from error
    else:
        value = copied(value, instance.__dict__.setdefault("__copies__", {}))
    at = f"{cls.__qualname__}.{name}"
    for patch in found.patches:
        value = patch.onto(value, at)
    return said.onto(value, at) if isinstance(said, Patch) else value


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of every Lazy in `value`, keeping intent (what was given) and what is shared inside it."""
    from .lazy import Lazy, given, revive

    if isinstance(value, Lazy):
        if id(value) not in memo:
            copy = revive(type(value), {k: copied(v, memo) for k, v in given(value).items()})
            memo[id(value)] = (copy, value)  # hold the original: ids are reused after collection
        return memo[id(value)][0]
    if isinstance(value, tuple) and any(isinstance(item, (Lazy, tuple)) for item in value):
        return tuple(copied(item, memo) for item in value)
    if isinstance(value, MappingProxyType):
        return MappingProxyType({k: copied(v, memo) for k, v in value.items()})
    return value


def missing_text(cls: type[Lazy[Any]], name: str) -> str:
    """Which field is missing, and the class and line that declares it."""
    from .source import line_of

    declared = fold(cls, name).chain[-1]
    return f"{cls.__qualname__}.{name} is required (declared by {declared.__qualname__}, {place(*line_of(declared, name))})"
