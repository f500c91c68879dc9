"""Class creation: what a class body says becomes attrs fields, and mistakes are found at import, where they stand.

An unannotated override inherits the annotation, the validator and the converter; an unknown name, a plain method over a
field, a mutable default or a value of the wrong type is an error. Fields keep the order in which they were first declared.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import TYPE_CHECKING, Any

import attrs

from .annotations import is_class_variable, own_annotations
from .errors import ConfigError, UnknownField, place, suggest
from .words import REQUIRED, Derived, Patch

if TYPE_CHECKING:
    from .lazy import Lazy

_CallableKinds = (types.FunctionType, property, classmethod, staticmethod, functools.cached_property)
_Constraint: type = type(attrs.field())


def declare(cls: type[Lazy[Any]], abstract: bool, runtime: tuple[str, ...] | None, line: tuple[str, int]) -> None:
    """Fill the class variables of a new Lazy class. Raises ConfigError with every problem of its body."""
    order = list(dict.fromkeys(n for base in reversed(cls.__mro__[1:]) for n in base.__dict__.get("__fields__", ())))
    nearest = _nearest_attributes(cls)
    cls.__line__ = line
    annotations = {k: v for k, v in own_annotations(cls).items() if not k.startswith("_") and not is_class_variable(v)}
    own, problems = _read_body(cls, annotations, nearest)
    for name in annotations:
        if name not in own and name not in nearest:
            own[name] = REQUIRED
    these = {name: _field(cls, name, own, annotations, nearest.get(name)) for name in {**own, **annotations}}
    values = {name: _default(value) for name, value in own.items()}
    for name in these:
        if name in cls.__dict__:
            delattr(cls, name)
    cls.__annotations__ = {}
    attrs.define(
        cls, these=these, slots=False, init=False, eq=False, repr=False, frozen=False, on_setattr=attrs.setters.NO_OP
    )
    cls.__annotations__ = annotations
    known = {a.name: a for a in attrs.fields(cls)}
    cls.__fields__ = {n: known[n] for n in [*order, *(n for n in known if n not in order)]}
    cls.__own__ = values
    cls.__abstract__ = abstract
    if runtime is not None:
        cls.__runtime__ = runtime
    type.__setattr__(cls, "__types__", {})
    type.__setattr__(cls, "__folds__", {})
    _find_target(cls)
    _install(cls, values)
    problems += _wrong_defaults(cls, values)
    if problems:
        texts = [text for problem in problems for text in problem.problems]
        raise problems[0] if len(problems) == 1 else ConfigError("\n".join(texts), texts)


def _nearest_attributes(cls: type[Lazy[Any]]) -> dict[str, attrs.Attribute[Any]]:
    """For each inherited field, the attribute of the class nearest in the MRO that has it."""
    out: dict[str, attrs.Attribute[Any]] = {}
    for base in cls.__mro__[1:]:
        own = base.__dict__.get("__own__", {})
        fields = base.__dict__.get("__fields__", {})
        for name in own:
            if name in fields:
                out.setdefault(name, fields[name])
    return out


def _read_body(
    cls: type[Lazy[Any]], annotations: dict[str, Any], inherited: dict[str, Any]
) -> tuple[dict[str, Any], list[ConfigError]]:
    own: dict[str, Any] = {}
    problems: list[ConfigError] = []
    for name, value in list(vars(cls).items()):
        if name.startswith("_") or (name not in annotations and is_class_variable(own_annotations(cls).get(name, ""))):
            continue
        at = f"{cls.__qualname__}.{name}"
        declared = name in annotations or name in inherited or isinstance(value, Derived)
        if isinstance(value, _CallableKinds) and _written_as_method(cls, name, value):
            if name in inherited:
                problems.append(ConfigError(f"{at}: a method over a field; decorate it with @derived{_at(cls, name)}"))
            continue
        if not declared:
            if isinstance(value, (*_CallableKinds, type)):
                continue
            hint = suggest(name, inherited)
            text = f"{at}: no field {name!r} to override{hint} (annotate it to declare a new field){_at(cls, name)}"
            problems.append(UnknownField(text))
            continue
        raw = _default(value)
        if isinstance(raw, (list, dict, set, bytearray)):
            kind = type(raw).__name__
            problems.append(ConfigError(f"{at}: mutable default, a {kind}; write a tuple, or @derived{_at(cls, name)}"))
            continue
        own[name] = value
    return own, problems


def _written_as_method(cls: type, name: str, value: Any) -> bool:
    """`def name(self)` in this body, as against a function or lambda that is the field's value."""
    function = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", None) or value
    return getattr(function, "__qualname__", "") == f"{cls.__qualname__}.{name}"


def _default(value: Any) -> Any:
    """What a class body assigns: the default inside `attrs.field(default=...)`, else the value itself."""
    if not isinstance(value, _Constraint):
        return value
    default = value._default  # type: ignore[attr-defined]
    if isinstance(default, attrs.Factory):  # type: ignore[arg-type]
        if default.takes_self:  # eager, order-dependent and stale under evolve
            raise ConfigError("attrs.Factory(takes_self=True) goes stale when a field changes; write @derived instead")
        return default.factory()
    return REQUIRED if default is attrs.NOTHING else default


def _field(
    cls: type, name: str, own: dict[str, Any], annotations: dict[str, Any], old: attrs.Attribute[Any] | None
) -> Any:
    """One attrs field: constraints from this body if it states any, else inherited."""
    value = own.get(name)
    if isinstance(value, _Constraint):
        validator, converter = value._validator, value.converter  # type: ignore[attr-defined]
        metadata = dict(value.metadata)  # type: ignore[attr-defined]
    else:
        validator, converter = (old.validator, old.converter) if old is not None else (None, None)
        metadata = dict(old.metadata) if old is not None else {}
    if name in annotations:
        annotation, module = annotations[name], cls.__module__
    elif isinstance(value, Derived) and "return" in value.function.__annotations__:
        annotation, module = value.function.__annotations__["return"], cls.__module__
    else:
        annotation, module = (old.type, old.metadata["module"]) if old is not None else (Any, cls.__module__)
    metadata["module"] = module
    make: Any = attrs.field  # annotations may be text here, which attrs takes and its stubs do not
    return make(
        default=None, type=annotation, kw_only=True, validator=validator, converter=converter, metadata=metadata
    )


def _find_target(cls: type[Lazy[Any]]) -> None:
    for base in cls.__dict__.get("__orig_bases__", ()):
        for argument in typing.get_args(base):
            if isinstance(argument, typing.ForwardRef):
                cls.__target__ = argument.__forward_arg__
            elif isinstance(argument, type) and argument is not Any:
                cls.__target__ = argument


def _install(cls: type[Lazy[Any]], values: dict[str, Any]) -> None:
    from .resolve import Slot

    for name in values:
        setattr(cls, name, Slot(name, cls))


def _wrong_defaults(cls: type[Lazy[Any]], values: dict[str, Any]) -> list[ConfigError]:
    """Wrong types and values at the lines of the class body; converts what a field's converter converts."""
    from .lazy import accept

    problems: list[ConfigError] = []
    checked = dict(values)
    for name, value in values.items():
        if isinstance(value, (Patch, Derived)) or value is REQUIRED:
            continue
        try:
            checked[name] = accept(cls, name, value)
        except ConfigError as error:
            texts = [problem + _at(cls, name) for problem in error.problems]
            problems.append(ConfigError("\n".join(texts), texts))
    cls.__own__ = checked
    return problems


def _at(cls: type[Lazy[Any]], name: str) -> str:
    from .source import line_of

    file, line = line_of(cls, name)
    return f" ({place(file, line)})"
