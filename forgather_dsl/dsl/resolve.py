"""What a field's value is: the first provider along the MRO, then every patch above it, base to derived, then the instance's own.

Results are memoised in the instance's dict, so later reads cost a dict lookup. A Lazy that is a class default is copied
for each owner; sharing comes only from `@derived` or from passing one object twice.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from .errors import ConfigError, CycleError, MissingValue, place, title
from .fields import accept, verify
from .lazy import Lazy, given, revive
from .words import REQUIRED, Derived, Patch, Stack, Swap

_lock = threading.RLock()  # identity is meaning here: two threads must not resolve one field twice
_active: list[tuple[int, str, type]] = []


class Slot:
    """Non-data descriptor of one field in one class; runs once per instance, then the instance's dict answers."""

    __slots__ = ("name", "owner")
    __is_slot__ = True

    def __init__(self, name: str, owner: type) -> None:
        self.name, self.owner = name, owner

    def __get__(self, instance: Any, cls: type) -> Any:
        if instance is None:
            return self
        memo, name = instance.__dict__, self.name
        found = fold(type(instance), name)
        if found.chain[0] is self.owner:  # not through super(): most values need no computation, and no lock
            said = memo["__given__"].get(name, REQUIRED)
            if said is REQUIRED and found.plain:
                said = found.provider
            if said is not REQUIRED and not isinstance(said, Patch):
                memo[name] = said
                return said
        return resolve_field(instance, name, self.owner)

    def __repr__(self) -> str:
        return f"the field {title(self.owner)}.{self.name} of the class"


class Fold(NamedTuple):
    """Who says what about a field: the provider, the patches on it, and every class with a say, derived first."""

    provider: Any
    provided_by: type | None
    patches: tuple[Patch, ...]  # base to derived
    chain: tuple[type, ...]
    plain: bool  # nothing to compute, copy or patch


def fold(cls: type[Lazy[Any]], name: str, start: type | None = None) -> Fold:
    """Walk the MRO from `start` (for `super()`), or from the class itself."""
    cache = cls.__folds__
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
        plain = not patches and not isinstance(provider, (Derived, Lazy, tuple, Mapping))
        cache[key] = Fold(provider, provided_by, tuple(reversed(patches)), chain, plain)
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
            raise CycleError(
                f"{title(cls)}: {' -> '.join(names)}: these derived fields need each other{_where(cls, name)}"
            )
        _active.append(key)
        try:
            value = _value(instance, name, owner if not top else None)
        finally:
            _active.pop()
        if value is REQUIRED:
            raise MissingValue(missing_text(cls, name), instance=instance, field=name)
        if top:
            memo[name] = value
        return value


def _value(instance: Any, name: str, start: type | None) -> Any:
    cls = type(instance)
    said = given(instance).get(name, REQUIRED) if start is None else REQUIRED
    found = fold(cls, name, start)
    copies = instance.__dict__.setdefault("__copies__", {})
    if isinstance(found.provider, Derived):
        value = _computed(instance, name, found)
    else:
        value = copied(found.provider, copies)
    patches = [copied(patch, copies) for patch in found.patches]
    if said is not REQUIRED:
        patches.append(said)
    for patch in patches:
        value = patch.onto(value, cls, name)
    if patches:
        verify(cls, name, value)
    return value


def _computed(instance: Any, name: str, found: Fold) -> Any:
    """What a derived field's function returns, checked like any value."""
    cls, function = type(instance), found.provider.function
    try:
        value = function(instance)
    except ConfigError as error:
        if isinstance(error, AttributeError):  # Python would ask __getattr__ for `name`, and hide what is wrong
            raise ConfigError(f"{title(cls)}.{name}: {error}{_line_in(function, error)}") from error
        raise
    except Exception as error:  # a user's function
        text = f"its @derived function failed: {type(error).__name__}: {error}{_line_in(function, error)}"
        raise ConfigError(f"{title(cls)}.{name}: {text}") from error
    try:
        return accept(cls, name, value)
    except ConfigError as error:
        texts = [text + _where(cls, name) for text in error.problems]
        raise ConfigError("\n".join(texts), texts) from error


def _where(cls: type[Lazy[Any]], name: str) -> str:
    from .source import line_of

    provider = fold(cls, name).provided_by
    return f" ({place(*line_of(provider, name))})" if provider is not None else ""


def _line_in(function: Any, error: BaseException) -> str:
    """` (file:line)` of the deepest line of the function's file that the error passed through."""
    file = function.__code__.co_filename
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({place(file, lines[-1])})" if lines else ""


def copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of every Lazy in `value`, keeping intent (what was given) and what is shared inside it."""
    if isinstance(value, Lazy):
        if id(value) not in memo:  # the originals are held by the class that states them
            memo[id(value)] = revive(type(value), {k: copied(v, memo) for k, v in given(value).items()})
        return memo[id(value)]
    if isinstance(value, Stack):
        return Stack(tuple(copied(part, memo) for part in value.parts))
    if type(value) in (Patch, Swap):
        return value.carrying({k: copied(v, memo) for k, v in value.values.items()})
    if type(value) is tuple and any(isinstance(item, (Lazy, tuple, MappingProxyType)) for item in value):
        return tuple(copied(item, memo) for item in value)
    if isinstance(value, MappingProxyType):
        return MappingProxyType({k: copied(v, memo) for k, v in value.items()})
    return value


def missing_text(cls: type[Lazy[Any]], name: str) -> str:
    """Which field is missing, and the class and line that declares it."""
    from .source import line_of

    declared = fold(cls, name).chain[-1]
    return f"{title(cls)}.{name} is required (declared by {title(declared)}, {place(*line_of(declared, name))})"
