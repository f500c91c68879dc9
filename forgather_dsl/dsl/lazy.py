"""Lazy: a frozen, keyword-only attrs class that describes, and does not import, the thing it builds.

`class RMSNorm(Norm["pkg.module.RMSNorm"]): eps: float = 1e-5`. An instance keeps only what was given to it; every other
field is looked up through the MRO when it is first read (`resolve`). attrs provides `fields`, validators, converters and
`evolve`; slots stay off, because slotted classes cannot have two bases with fields.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, dataclass_transform

import attrs

from .annotations import Unresolved, describe, evaluate, fits
from .errors import ConfigError, Frozen, UnknownField, caller, place, suggest
from .words import REQUIRED, Patch, unknown

T = TypeVar("T")
_EVOLVE = attrs.evolve.__code__


@dataclass_transform(kw_only_default=True, frozen_default=False, field_specifiers=(attrs.field,))
class Lazy(Generic[T]):
    """Base of everything configurable. The type argument, a string, is the static result type and the import path."""

    __fields__: ClassVar[Mapping[str, attrs.Attribute[Any]]] = {}
    __own__: ClassVar[Mapping[str, Any]] = {}  # what this class body says, raw
    __target__: ClassVar[Any] = None  # import path, or the class itself
    __abstract__: ClassVar[bool] = True
    __runtime__: ClassVar[tuple[str, ...]] = ()  # what `build` may add to the fields
    __line__: ClassVar[tuple[str, int]] = ("", 0)
    __wildcard__: ClassVar[bool] = False  # stands in for its options in a Factory field (Cycle)
    __universal__: ClassVar[bool] = False  # fits every field (call)

    def __init_subclass__(cls, abstract: bool = False, runtime: tuple[str, ...] | None = None, **kw: Any) -> None:
        from .declare import declare

        super().__init_subclass__(**kw)
        declare(cls, abstract, runtime, caller(1))

    if not TYPE_CHECKING:  # a visible __setattr__ or __getattr__ makes type checkers accept every name

        def __init__(self, **values):
            cls = type(self)
            frame = sys._getframe(1)
            if frame.f_code is _EVOLVE:
                values = _as_evolved(frame.f_locals["inst"], values)
            self.__dict__["__given__"] = cls.__accept_all__(values, cls.__name__)

        def __setattr__(self, name, value):
            raise Frozen(f"{type(self).__name__}.{name}: experiments are frozen; write replace(x, {name}=...)")

        def __delattr__(self, name):
            raise Frozen(f"{type(self).__name__}.{name}: experiments are frozen")

        def __getattr__(self, name):
            if name.startswith("__"):
                raise AttributeError(name)
            raise UnknownField(f"{type(self).__name__} has no field {name!r}{suggest(name, type(self).__fields__)}")

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and _contents(self) == _contents(cast("Lazy[Any]", other)))

    def __hash__(self) -> int:
        return hash(type(self))  # equal values may differ in spelling (1 and 1.0), so no field takes part

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in given(self).items())})"

    def __replace__(self, **values: Any) -> Any:  # copy.replace, Python 3.13
        return replace(self, **values)

    def __copy__(self) -> Any:
        return revive(type(self), given(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        from .resolve import copied

        return copied(self, memo)

    def __reduce__(self) -> Any:  # by path, so that spawned workers can load an experiments file
        from .pickling import reduce

        return reduce(self)

    @classmethod
    def __accept_all__(
        cls, values: Mapping[str, Any], what: str, where: tuple[str, int] | None = None
    ) -> dict[str, Any]:
        """Values checked and converted; every problem at once."""
        names = [name for name in values if name not in cls.__fields__]
        if names:
            raise unknown(what, names, cls.__fields__, f" ({place(*(where or caller()))})")
        problems: list[str] = []
        accepted: dict[str, Any] = {}
        for name, value in values.items():
            try:
                accepted[name] = value if isinstance(value, Patch) else accept(cls, name, value)
            except ConfigError as error:
                problems += [f"{problem} ({place(*(where or caller()))})" for problem in error.problems]
        if problems:
            raise ConfigError("\n".join(problems), problems)
        return accepted


def given(lazy: Lazy[Any]) -> dict[str, Any]:
    """What was said about this one object: explicit values and patches, not what its class provides."""
    return lazy.__dict__["__given__"]


def revive(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance from values that were accepted before."""
    made = object.__new__(cls)
    made.__dict__["__given__"] = dict(values)
    return made


def replace(lazy: T, **values: Any) -> T:
    """A copy with some fields changed. Patches stack on patches; derived fields are computed anew."""
    node = cast("Lazy[Any]", lazy)
    changed = dict(given(node))
    for name, value in type(node).__accept_all__(values, f"replace({type(node).__name__}, ...)").items():
        earlier = changed.get(name, REQUIRED)
        if isinstance(value, Patch) and name in changed:
            changed[name] = (
                Stack((*_patches(earlier), value)) if isinstance(earlier, Patch) else value.onto(earlier, name)
            )
        else:
            changed[name] = value
    return revive(type(node), changed)


class Stack(Patch):
    """Several patches of one field of one instance, first to last."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Patch, ...]) -> None:
        self.parts, self.cls, self.where = parts, parts[-1].cls, parts[-1].where
        self.values = {k: v for part in parts for k, v in part.values.items()}

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __reduce__(self) -> Any:
        return Stack, (self.parts,)

    def onto(self, base: Any, at: str) -> Any:
        for part in self.parts:
            base = part.onto(base, at)
        return base


def _patches(value: Patch) -> tuple[Patch, ...]:
    return value.parts if isinstance(value, Stack) else (value,)


def _contents(lazy: Lazy[Any]) -> list[tuple[str, Any]]:
    """Every field as it resolves; REQUIRED where nothing fills it."""
    out = []
    for name in type(lazy).__fields__:
        try:
            out.append((name, getattr(lazy, name)))
        except ConfigError:
            out.append((name, REQUIRED))
    return out


def _as_evolved(original: Lazy[Any], values: dict[str, Any]) -> dict[str, Any]:
    """attrs.evolve passes every field's present value; keep as explicit only what was explicit or is new."""
    said, seen = given(original), original.__dict__
    kept = {k: v for k, v in values.items() if k in said or v is not seen.get(k, REQUIRED)}
    return {k: said[k] if k in said and v is seen.get(k, REQUIRED) else v for k, v in kept.items()}


def annotation_of(cls: type[Lazy[Any]], name: str) -> Any:
    """A field's annotation, evaluated in the module of the class that wrote it."""
    cache: dict[str, Any] = cls.__dict__["__types__"]
    if name not in cache:
        attribute = cls.__fields__[name]
        result = evaluate(attribute.type, attribute.metadata["module"])
        if isinstance(result, Unresolved):
            return result  # not cached: the name may exist once the module is complete
        cache[name] = result
    return cache[name]


def accept(cls: type[Lazy[Any]], name: str, value: Any, instance: Any = None) -> Any:
    """A value for a field: converted, type-checked, validated. Raises ConfigError."""
    if value is REQUIRED:
        return value
    attribute = cls.__fields__[name]
    at = f"{cls.__qualname__}.{name}"
    try:
        if attribute.converter is not None:
            value = cast(Any, attribute.converter)(value)
    except ConfigError:
        raise
    except Exception as error:  # a user's converter
        raise ConfigError(f"{at} = {value!r}: {error}") from error
    annotation = annotation_of(cls, name)
    if type(value) is int and (annotation is float or annotation == (float | None)):
        value = float(value)  # `lr = 1` and `lr = 1.0` are one configuration
    if isinstance(value, dict):
        value = MappingProxyType(dict(value))
    if not fits(value, annotation):
        found = type(value).__name__ if isinstance(value, Lazy) else f"{value!r}, a {type(value).__name__}"
        raise ConfigError(f"{at}: expected {describe(annotation)}, got {found}{_advice(value, annotation)}")
    if attribute.validator is not None:
        _validate(attribute, at, value, instance)
    return value


def _validate(attribute: attrs.Attribute[Any], at: str, value: Any, instance: Any) -> None:
    try:
        cast(Any, attribute.validator)(instance, attribute, value)
    except ConfigError:
        raise
    except AttributeError:
        if instance is not None:
            raise
        # the validator looks at other fields: `check` runs it again on the whole instance
    except Exception as error:  # a user's validator
        text = error.args[0] if error.args else str(error)
        raise ConfigError(f"{at} = {value!r}: {text}") from error


def _advice(value: Any, annotation: Any) -> str:
    text = describe(annotation)
    if isinstance(value, list) and text.startswith("tuple"):
        return f"; write a tuple: ({', '.join(map(repr, value))},)"
    if isinstance(value, type) and issubclass(value, Lazy):
        return f"; write {value.__name__}() with brackets"
    return ""
