"""Class creation: what a class body says becomes attrs fields, and mistakes are found at import, where they stand.

An unannotated override inherits the annotation, the validator and the converter; an unknown name, a plain method over a
field, a mutable default or a value of the wrong type is an error. Fields keep the order in which they were first declared.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import TYPE_CHECKING, Any

import attrs

from .annotations import is_class_variable, names_in, own_annotations
from .errors import ConfigError, UnknownField, joined, place, title
from .words import REQUIRED, Derived, Patch

if TYPE_CHECKING:
    from .lazy import Lazy

_CallableKinds = (types.FunctionType, property, classmethod, staticmethod, functools.cached_property)
_Constraint: Any = type(attrs.field())
_AttrsFactory: Any = attrs.Factory
_INSTEAD = {list: "a tuple", set: "a frozenset", dict: "types.MappingProxyType({...})", bytearray: "bytes"}


def declare(cls: type[Lazy[Any]], abstract: bool, runtime: tuple[str, ...] | None, frame: FrameType) -> None:
    """Fill the class variables of a new Lazy class. Raises ConfigError with every problem of its body."""
    cls.__line__, cls.__abstract__ = (frame.f_code.co_filename, frame.f_lineno), abstract
    cls.__types__, cls.__folds__ = {}, {}
    if runtime is not None:
        cls.__runtime__ = runtime
    _find_target(cls)
    written = own_annotations(cls)
    annotations = {k: v for k, v in written.items() if not k.startswith("_") and not is_class_variable(v)}
    inherited = _inherited(cls)
    errors: list[ConfigError] = []
    body = dict(_read_body(cls, written, annotations, inherited, errors))
    own = {name: value for name, (value, _) in body.items() if value is not _Unsaid}
    own.update({name: REQUIRED for name in annotations if name not in body and name not in inherited})
    cls.__written__ = {**_returns(own), **annotations}
    cls.__names__ = _names_around(cls.__written__, frame)
    _define(cls, own, body, inherited)
    _install(cls, own)
    cls.__own__ = own
    cls.__own__ = {**own, **dict(_checked(cls, own, {*annotations, *body}, errors))}
    cls.__folds__ = {}  # what the checks folded is not converted yet
    if errors:
        raise joined(errors)


class _Unsaid:
    """The default of `attrs.field(validator=...)` without a default over an inherited field: the inherited one."""


def _read_body(
    cls: type[Lazy[Any]],
    written: dict[str, Any],
    annotations: dict[str, Any],
    inherited: dict[str, Any],
    errors: list[ConfigError],
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Name, and the value with its `attrs.field(...)` if it has one, of each field that the body assigns."""
    for name, value in list(vars(cls).items()):
        if name.startswith("_") or (name in written and name not in annotations):
            continue
        if isinstance(value, _CallableKinds) and _written_as_method(cls, name, value):
            if name in inherited:
                errors.append(_error(cls, name, "a method over a field; decorate it with @derived"))
            continue
        if name not in annotations and name not in inherited and not isinstance(value, Derived):
            if not isinstance(value, (*_CallableKinds, type)):
                errors.append(_error(cls, name, _unknown(cls, name, value, inherited), UnknownField))
            continue
        try:
            raw = _default(value, name in inherited)
        except ConfigError as error:
            errors.append(_error(cls, name, str(error)))
            continue
        raw = _frozen(cls, name, raw)
        if type(raw) in _INSTEAD:
            kind = type(raw).__name__
            errors.append(
                _error(cls, name, f"mutable default, a {kind}; write {_instead(cls, name, raw)}, or @derived")
            )
            continue
        yield name, (raw, value if isinstance(value, _Constraint) else None)


def _frozen(cls: Any, name: str, value: Any) -> Any:
    """A dict as a read-only mapping, where a base says that the field holds one."""
    from .fields import annotation_of

    base: Any = next((base for base in cls.__mro__[1:] if name in getattr(base, "__fields__", ())), None)
    if type(value) is not dict or base is None or typing.get_origin(annotation_of(base, name)) is not Mapping:
        return value
    return types.MappingProxyType(dict(value))


def _instead(cls: Any, name: str, value: Any) -> str:
    from .annotations import lazy_class
    from .fields import annotation_of

    base: Any = next((base for base in cls.__mro__[1:] if name in getattr(base, "__fields__", ())), None)
    kind = lazy_class(annotation_of(base, name)) if base is not None else None
    return _INSTEAD[type(value)] if kind is None else f"{kind.__name__}(...)"


def _unknown(cls: Any, name: str, value: Any, inherited: dict[str, Any]) -> str:
    from .hints import unknown_in_body

    kind = "..." if isinstance(value, (Patch, _Constraint)) else type(value).__name__
    hint = unknown_in_body(cls.__bases__, name, inherited)
    return f"no field {name!r} to override{hint} (to declare a new one, annotate it: {name}: {kind} = ...)"


def _written_as_method(cls: type, name: str, value: Any) -> bool:
    """`def name(self)` in this body, as against a function or lambda that is the field's value."""
    function = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", None) or value
    return getattr(function, "__qualname__", "") == f"{cls.__qualname__}.{name}"


def _default(value: Any, inherited: bool) -> Any:
    """What a class body assigns: the default inside `attrs.field(default=...)`, else the value itself."""
    if not isinstance(value, (_Constraint, _AttrsFactory)):
        return value
    default = value._default if isinstance(value, _Constraint) else value
    if default is attrs.NOTHING:
        return _Unsaid if inherited else REQUIRED
    if isinstance(default, _AttrsFactory):
        if default.takes_self:  # eager, order-dependent and stale under evolve
            raise ConfigError("attrs.Factory(takes_self=True) goes stale when a field changes; write @derived instead")
        return default.factory()
    return default


def _returns(own: dict[str, Any]) -> dict[str, Any]:
    """What the @derived functions of a body say they return."""
    found = {name: own_annotations(value.function) for name, value in own.items() if isinstance(value, Derived)}
    return {name: annotations["return"] for name, annotations in found.items() if "return" in annotations}


def _define(cls: Any, own: dict[str, Any], body: dict[str, Any], inherited: dict[str, Any]) -> None:
    """Make attrs fields of what the body says; `attrs.fields(cls)` then tells the truth about this class."""
    names = list({**body, **cls.__written__, **own})
    bases = [base for base in cls.__bases__ if hasattr(base, "__fields__")]
    if not names and len(bases) == 1 and "__attrs_attrs__" in vars(bases[0]):
        cls.__attrs_attrs__ = _as_inherited(bases[0])
        return  # attrs.define is most of what a class costs, and there is nothing new to define
    these, written_here = {}, own_annotations(cls)
    for name in names:
        constraint, old = body.get(name, (None, None))[1], inherited.get(name, (None, None))[0]
        source = constraint if constraint is not None else old
        these[name] = attrs.field(
            default=_shown(own.get(name, REQUIRED)),
            type=None if name in written_here else cls.__written__.get(name, old.type if old else Any),
            kw_only=True,
            init=False,  # the constructor is ours, not attrs'; so attrs.evolve passes on the changes alone
            validator=constraint._validator if constraint is not None else old.validator if old else None,
            converter=source.converter if source is not None else None,
            metadata=dict(source.metadata) if source is not None else None,
        )
        if name in cls.__dict__:
            delattr(cls, name)
    attrs.define(
        cls, these=these, slots=False, init=False, eq=False, repr=False, frozen=False, on_setattr=attrs.setters.NO_OP
    )
    known = {a.name: a for a in attrs.fields(cls)}
    first = dict.fromkeys(n for base in reversed(cls.__mro__[1:]) for n in base.__dict__.get("__fields__", ()))
    cls.__fields__ = {n: known[n] for n in {**first, **known}}
    cls.__writers__ = {n: cls if n in cls.__written__ or n not in inherited else inherited[n][1] for n in known}


def _as_inherited(base: Any) -> Any:
    """The attrs fields of a class as a subclass without any of its own has them."""
    if "__attrs_below__" not in vars(base):
        fields = attrs.fields(base)
        base.__attrs_below__ = type(fields)(a if a.inherited else a.evolve(inherited=True) for a in fields)
    return base.__attrs_below__


def _shown(value: Any) -> Any:
    """The default as attrs.fields reports it."""
    if value is REQUIRED:
        return attrs.NOTHING
    return attrs.Factory(value.function, takes_self=True) if isinstance(value, Derived) else value


def _inherited(cls: type[Lazy[Any]]) -> dict[str, tuple[attrs.Attribute[Any], type]]:
    """For each inherited field, the attribute of the nearest class in the MRO that states it, and who wrote its type."""
    found: dict[str, tuple[attrs.Attribute[Any], type]] = {}
    for base in cls.__mro__[1:]:
        for name, attribute in base.__dict__.get("__fields__", {}).items():
            if not attribute.inherited and name not in found:
                found[name] = attribute, base.__writers__[name]  # type: ignore[attr-defined]
    return found


def _find_target(cls: type[Lazy[Any]]) -> None:
    for base in cls.__dict__.get("__orig_bases__", ()):
        for argument in typing.get_args(base):
            if hasattr(argument, "__forward_arg__"):
                cls.__target__ = argument.__forward_arg__.partition("[")[0]
            elif isinstance(argument, type) and argument is not Any:
                cls.__target__ = argument


def _names_around(written: Mapping[str, Any], frame: FrameType) -> dict[str, Any]:
    """What annotations name in the function, or class body, around their class."""
    if frame.f_locals is frame.f_globals:
        return {}
    around = frame.f_locals
    return {name: around[name] for name in names_in(written) if name in around}


def _install(cls: type[Lazy[Any]], own: dict[str, Any]) -> None:
    from .resolve import Slot

    for name in own:
        setattr(cls, name, Slot(name, cls))


def _checked(
    cls: type[Lazy[Any]], own: dict[str, Any], stated: set[str], errors: list[ConfigError]
) -> Iterator[tuple[str, Any]]:
    """Defaults converted and checked at the lines of the class body, inherited ones against what this body tightens."""
    from .fields import accept, verify, verify_patch
    from .resolve import fold

    for name in cls.__fields__:
        value = own[name] if name in own else fold(cls, name).provider if name in stated else REQUIRED
        if isinstance(value, Derived) or value is REQUIRED:
            continue
        try:
            if isinstance(value, Patch):
                verify_patch(cls, name, value)
            elif name in own:
                yield name, accept(cls, name, value)
            else:
                verify(cls, name, value)
        except ConfigError as error:
            texts = [text + _at(cls, name) for text in error.problems]
            errors.append(type(error)("\n".join(texts), texts))


def _error(cls: Any, name: str, text: str, kind: type[ConfigError] = ConfigError) -> ConfigError:
    return kind(f"{title(cls)}.{name}: {text}{_at(cls, name)}")


def _at(cls: Any, name: str) -> str:
    from .source import line_of

    return f" ({place(*line_of(cls, name))})"
