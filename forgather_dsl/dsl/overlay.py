"""Overrides from text or JSON: `--set optimizer.lr=1e-4`, `--set optimizer=Muon`, one mechanism with patches.

An overlay keeps the text and is structured when the field resolves, against the type that stands there by then; types are
applied before leaves. So neither the order of overlays nor derived values that depend on other overlays matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, cast

from .annotations import fits, item_annotation, lazy_class, settled
from .errors import ConfigError, MissingValue, UnknownField, article, joined
from .fields import annotation_of, converted, verify
from .graph import split_path
from .hints import unknown
from .lazy import Lazy, T, given, revive
from .structure import structure
from .words import REQUIRED, Patch, Stack, Swap


class Overlay(Patch):
    """What was said about one path and the fields below it, unparsed: an optional whole value, then leaves by name."""

    __slots__ = ("below", "path", "whole")
    word = "set"
    said_by = "--set"

    def __init__(
        self, path: str = "", whole: Any = REQUIRED, below: Mapping[str, Overlay] = MappingProxyType({})
    ) -> None:
        self.path, self.whole, self.below = path, whole, dict(below)
        self.cls, self.where, self.values = Lazy, None, dict(below)

    def __repr__(self) -> str:
        if not self.below:
            return repr(self.whole)
        whole = [] if self.whole is REQUIRED else [repr(self.whole)]
        return f"set({', '.join([*whole, *(f'{k}={v!r}' for k, v in self.below.items())])})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Overlay) and self.whole == other.whole and self.below == other.below

    def __hash__(self) -> int:
        return hash((repr(self.whole), frozenset(self.below)))

    def __reduce__(self) -> Any:
        return Overlay, (self.path, self.whole, self.below)

    def merged(self, other: Overlay) -> Overlay:
        """This overlay with a later one on top."""
        below = dict(self.below)
        for name, child in other.below.items():
            below[name] = below[name].merged(child) if name in below else child
        return Overlay(self.path, self.whole if other.whole is REQUIRED else other.whole, below)

    def onto(self, base: Any, cls: type[Lazy[Any]], name: str) -> Any:
        """The field's value under this overlay: structured, converted and checked as the field demands."""
        annotation = annotation_of(cls, name)

        def read(text: Any) -> Any:
            if not isinstance(text, str) and fits(text, annotation):
                return converted(cls, name, text)
            try:
                value = structure(text, annotation, self.path)
            except ConfigError:
                if cls.__fields__[name].converter is None:
                    raise
                value = text  # the converter may know the spelling: "4k" for an int
            return converted(cls, name, value)

        value = settled(_apply(self, base, annotation, read), annotation)
        try:
            verify(cls, name, value)
        except ConfigError as error:
            texts = [text if text.startswith(self.path) else f"{self.path}: {text}" for text in error.problems]
            raise type(error)("\n".join(texts), texts) from None
        return value


def _apply(said: Overlay, base: Any, annotation: Any, read: Callable[[Any], Any]) -> Any:
    """`base` with the overlay on it: first the whole value or type, then what is said below."""
    value = base
    if said.whole is not REQUIRED:
        value = read(said.whole)
        named = isinstance(value, Lazy) and not isinstance(said.whole, Lazy) and not given(value)
        if named and isinstance(base, Lazy):  # a type's name: keep what both share
            value = Swap(type(value), {}).onto(base, type(value), "")
    if not said.below:
        return value
    if value is REQUIRED:
        kind: Any = lazy_class(annotation)
        if kind is None or kind.__abstract__:
            wanted = article(kind.__name__) if kind is not None else "a value"
            raise ConfigError(
                f"{next(iter(said.below.values())).path}: nothing fills {said.path} yet; set it to {wanted} first"
            )
        value = kind()
    if isinstance(value, Lazy):
        return _apply_fields(said, value)
    if isinstance(value, tuple):
        return _apply_items(said, value, annotation)
    if isinstance(value, Mapping):
        kind = item_annotation(annotation)
        changed = {
            k: _apply(child, value.get(k, REQUIRED), kind, _read_as(child, kind)) for k, child in said.below.items()
        }
        return MappingProxyType({**value, **changed})
    child = next(iter(said.below.values()))
    raise ConfigError(f"{child.path}: {said.path} is {value!r}, which has nothing below it")


def _read_as(said: Overlay, annotation: Any) -> Callable[[Any], Any]:
    return lambda text: structure(text, annotation, said.path)


def _apply_items(said: Overlay, value: tuple[Any, ...], annotation: Any) -> tuple[Any, ...]:
    items = list(value)
    for name, child in said.below.items():
        if not name.isdecimal() or int(name) >= len(items):
            raise ConfigError(f"{child.path}: {said.path} has {len(items)} items, numbered from 0")
        kind = item_annotation(annotation, int(name))
        items[int(name)] = _apply(child, items[int(name)], kind, _read_as(child, kind))
    return tuple(items)


def _apply_fields(said: Overlay, value: Lazy[Any]) -> Lazy[Any]:
    cls, changes = type(value), dict(given(value))
    errors: list[ConfigError] = []
    arguments: dict[str, Overlay] = {}
    for name, child in said.below.items():
        if name in cls.__fields__:
            changes[name] = _on_top(changes.get(name, REQUIRED), child)
        elif cls.__universal__:  # the arguments of a call, unchecked
            arguments[name] = child
        else:
            errors.append(UnknownField(f"{child.path}: {cls.__name__} has no field {name!r}{unknown(value, name)}"))
    if arguments:
        below = Overlay(said.path, REQUIRED, arguments)
        changes["arguments"] = _on_top(changes.get("arguments", REQUIRED), below)
    changed = revive(cls, changes)
    for name in [name for name in said.below if name in cls.__fields__]:
        try:
            getattr(changed, name)
        except MissingValue:
            continue  # of another field that this one needs: `check` reports it
        except ConfigError as error:
            errors.append(error)
    if errors:
        raise joined(errors)
    return changed


def _on_top(earlier: Any, change: Overlay) -> Any:
    """What an instance says about a field after an overlay: overlays merge, other patches stack, values wait below it."""
    if earlier is REQUIRED:
        return change
    if isinstance(earlier, Overlay):
        return earlier.merged(change)
    parts = earlier.parts if isinstance(earlier, Patch) else (Instead(earlier),)
    last = parts[-1]
    if isinstance(last, Overlay):
        return Stack((*parts[:-1], last.merged(change)))
    return Stack((*parts, change))


class Instead(Patch):
    """A plain value that was given to an instance, under overlays."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value, self.cls, self.where, self.values = value, Lazy, None, {}

    def __repr__(self) -> str:
        return repr(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Instead) and self.value == other.value

    def __hash__(self) -> int:
        return hash(Instead)

    def __reduce__(self) -> Any:
        from .pickling import packed

        return Instead, (packed(self.value),)

    def onto(self, base: Any, cls: type[Lazy[Any]], name: str) -> Any:
        return self.value


def override(root: T, values: Mapping[str, Any], /) -> T:
    """`override(x, {"optimizer": "Muon", "optimizer.lr": "1e-4"})`: a copy with text or JSON values applied.

    A path may go through fields, list positions (`layers.0.x`, `layers[0].x`) and the arguments of a `call`.

    Raises:
        ConfigError: every unknown path and every value of the wrong type, at once.
    """
    said = Overlay()
    for path, value in values.items():
        parts = split_path(path)
        nested = Overlay(path, value)
        for depth in range(len(parts) - 1, -1, -1):
            nested = Overlay(".".join(parts[:depth]), REQUIRED, {parts[depth]: nested})
        said = said.merged(nested)
    given(cast("Lazy[Any]", root))
    return cast(T, _apply_fields(said, cast("Lazy[Any]", root)))
