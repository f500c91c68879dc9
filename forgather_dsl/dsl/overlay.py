"""Overrides from text or JSON: `--set optimizer.lr=1e-4`, `--set optimizer=Muon`, one mechanism with patches.

An overlay keeps the text and is structured when the field resolves, against the type that stands there by then; types are
applied before leaves. So neither the order of overlays nor derived values that depend on other overlays matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

from .errors import ConfigError, suggest
from .lazy import Lazy, T, accept, annotation_of, given, replace, revive
from .structure import structure
from .words import REQUIRED, Patch, Swap


class Overlay(Patch):
    """What was said about one field and the fields below it, unparsed: an optional whole value, then leaves by name."""

    __slots__ = ("below", "whole")
    word = "set"
    said_by = "--set"

    def __init__(self, whole: Any = REQUIRED, below: Mapping[str, Overlay] = MappingProxyType({})) -> None:
        self.whole, self.below, self.where = whole, dict(below), None
        self.cls, self.values = Lazy, self._as_values()

    def _as_values(self) -> dict[str, Any]:
        return {name: child if child.below else child.whole for name, child in self.below.items()}

    def __repr__(self) -> str:
        whole = [] if self.whole is REQUIRED else [repr(self.whole)]
        return f"set({', '.join([*whole, *(f'{k}={v!r}' for k, v in self.values.items())])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overlay) and self.whole == other.whole and self.below == other.below

    def __hash__(self) -> int:
        return hash((repr(self.whole), tuple(self.below)))

    def __reduce__(self) -> Any:
        return Overlay, (self.whole, self.below)

    def onto(self, base: Any, at: str) -> Any:
        raise AssertionError("an overlay needs the field it stands in; see `Field.onto`")  # pragma: no cover

    def merged(self, other: Overlay) -> Overlay:
        """This overlay with a later one on top."""
        below = dict(self.below)
        for name, child in other.below.items():
            below[name] = below[name].merged(child) if name in below else child
        return Overlay(self.whole if other.whole is REQUIRED else other.whole, below)


class Field(Overlay):
    """An overlay that knows the class and field it stands in, and so the annotation to structure against."""

    __slots__ = ("name", "owner", "path")

    def __init__(self, owner: type[Lazy[Any]], name: str, path: str, said: Overlay) -> None:
        super().__init__(said.whole, said.below)
        self.owner, self.name, self.path = owner, name, path

    def __reduce__(self) -> Any:
        from .pickling import path_of

        return _revive_field, (path_of(self.owner), self.name, self.path, Overlay(self.whole, self.below))

    def onto(self, base: Any, at: str) -> Any:
        return apply(self, base, annotation_of(self.owner, self.name), self.path)


def _revive_field(cls: str, name: str, path: str, said: Overlay) -> Field:
    from .load import load_class

    return Field(cast(Any, load_class(cls)), name, path, said)


def apply(said: Overlay, base: Any, annotation: Any, at: str) -> Any:
    """`base` with the overlay on it: first the whole value or type, then what is said below."""
    value = base
    if said.whole is not REQUIRED:
        value = structure(said.whole, annotation, at)
        if (
            isinstance(value, Lazy) and isinstance(base, Lazy) and not given(value)
        ):  # a type's name: keep what both share
            value = Swap(type(value), {}).onto(base, at)
    if not said.below:
        return value
    if isinstance(value, Lazy):
        return _apply_fields(said, value, at)
    if isinstance(value, tuple):
        return _apply_items(said, value, at)
    if isinstance(value, Mapping):
        return MappingProxyType({**value, **{k: structure(c.whole, Any, f"{at}.{k}") for k, c in said.below.items()}})
    name = next(iter(said.below))
    raise ConfigError(f"{at}.{name}: {at} is {value!r}, which has no field {name!r}")


def _apply_fields(said: Overlay, value: Lazy[Any], at: str) -> Lazy[Any]:
    cls, arguments = type(value), {}
    problems: list[str] = []
    for name, child in said.below.items():
        if name not in cls.__fields__:
            if cls.__universal__ and name in getattr(value, "arguments", {}):
                arguments[name] = structure(child.whole, Any, f"{at}.{name}")
                continue
            problems.append(f"{_join(at, name)}: {cls.__name__} has no field {name!r}{suggest(name, cls.__fields__)}")
    changes: dict[str, Any] = {
        name: Field(cls, name, _join(at, name), child) for name, child in said.below.items() if name in cls.__fields__
    }
    if problems:
        raise ConfigError("\n".join(problems), problems)
    if arguments:
        changes["arguments"] = MappingProxyType({**cast(Any, value).arguments, **arguments})
    changed = _with(value, changes)
    problems = [p for name in changes for p in _errors(changed, name, _join(at, name))]
    if problems:
        raise ConfigError("\n".join(problems), problems)
    return changed


def _with(value: Lazy[Any], changes: Mapping[str, Any]) -> Lazy[Any]:
    """`replace`, except that overlays stay unparsed and stack on what was given."""
    said = dict(given(value))
    for name, change in changes.items():
        earlier = said.get(name)
        if isinstance(change, Field) and isinstance(earlier, Field):
            said[name] = Field(change.owner, name, change.path, earlier.merged(change))
        elif isinstance(change, Field) and isinstance(earlier, Patch):
            from .lazy import Stack

            said[name] = Stack((*(earlier.parts if isinstance(earlier, Stack) else (earlier,)), change))
        elif isinstance(change, Field) and name in said:
            said[name] = change.onto(earlier, name)
        else:
            said[name] = change
    return revive(type(value), said)


def _errors(changed: Lazy[Any], name: str, at: str) -> list[str]:
    try:
        accept(type(changed), name, getattr(changed, name), changed)
    except ConfigError as error:
        return [text if text.startswith(at) else f"{at}: {text}" for text in error.problems]
    return []


def _apply_items(said: Overlay, value: tuple[Any, ...], at: str) -> tuple[Any, ...]:
    items = list(value)
    for name, child in said.below.items():
        if not name.isdigit() or int(name) >= len(items):
            raise ConfigError(f"{at}.{name}: {at} has {len(items)} items, numbered from 0")
        items[int(name)] = apply(child, items[int(name)], Any, f"{at}.{name}")
    return tuple(items)


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def override(root: T, values: Mapping[str, Any]) -> T:
    """`override(x, {"optimizer": "Muon", "optimizer.lr": "1e-4"})`: a copy with text or JSON values applied.

    A path may go through fields, list positions (`layers.0.x`, `layers[0].x`) and the arguments of a `call`.

    Raises:
        ConfigError: every unknown path and every value of the wrong type, at once.
    """
    said = Overlay()
    for path, value in values.items():
        nested = Overlay(value)
        for part in reversed(path.replace("[", ".").replace("]", "").split(".")):
            nested = Overlay(REQUIRED, {part: nested})
        said = said.merged(nested)
    return cast(T, _apply_fields(said, cast("Lazy[Any]", root), ""))


__all__ = ["override", "replace"]
