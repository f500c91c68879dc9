"""What a field's annotation means: evaluated one at a time, where it was written, and compared with a value.

Annotations are read as text (`from __future__ import annotations`, Python 3.14's lazy ones) and evaluated only when
a value must be checked or parsed, so a name that exists only under TYPE_CHECKING costs its checks, not the import.
"""

from __future__ import annotations

import collections.abc
import re
import sys
import types
import typing
from collections import ChainMap
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

from .words import REQUIRED

T = TypeVar("T")
_TypeAlias: Any = getattr(typing, "TypeAliasType", ())  # `type X = ...`, Python 3.12


class FactoryMark:
    """Marks an annotation as `Factory[...]`."""

    def __repr__(self) -> str:
        return "Factory"


Factory = Annotated[T, FactoryMark()]
"""`norm: Factory[Norm] = RMSNorm()`: build passes a callable that makes a new one at each call (one norm per layer)."""


class Unresolved:
    """An annotation that cannot be evaluated here; `reason` says why."""

    def __init__(self, text: str, reason: str) -> None:
        self.text, self.reason = text, reason


def own_annotations(written_in: Any) -> dict[str, Any]:
    """The annotations written in a class body or at a function, unevaluated where Python allows it."""
    if sys.version_info >= (3, 14):  # PEP 649: computed on demand, and a name that is not there yet would raise
        import annotationlib

        found = annotationlib.get_annotations(written_in, format=annotationlib.Format.FORWARDREF)
        if "ForwardRef(" not in repr(found):
            return found
        text = annotationlib.get_annotations(written_in, format=annotationlib.Format.STRING)
        return {k: text[k] if "ForwardRef(" in repr(v) else v for k, v in found.items()}
    return dict(getattr(written_in, "__annotations__", {}))


def is_class_variable(annotation: Any) -> bool:
    """Whether the annotation is ClassVar, written out or as text."""
    text = annotation if isinstance(annotation, str) else str(annotation)
    return re.match(r"(\w+\.)?ClassVar\b", text) is not None


def names_in(annotations: Mapping[str, Any]) -> set[str]:
    """Every identifier in annotations that are text."""
    return {word for text in annotations.values() if isinstance(text, str) for word in re.findall(r"\w+", text)}


def evaluate(annotation: Any, module: str, names: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The annotation as an object, or `Unresolved`; `names` are those of the function around the class."""
    text = getattr(annotation, "__forward_arg__", annotation)
    if isinstance(text, str):
        around = vars(sys.modules[module]) if module in sys.modules else {}
        try:
            annotation = eval(text, {}, ChainMap(dict(names), dict(around), dict(vars(typing))))
        except Exception as error:  # anything may be written in an annotation
            return Unresolved(text, str(error))
    return annotation.__value__ if _TypeAlias and isinstance(annotation, _TypeAlias) else annotation


def is_union(annotation: Any) -> bool:
    """`A | B` and `Union[A, B]`."""
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def is_factory(annotation: Any) -> bool:
    """Whether the annotation is `Factory[...]`, also as `Factory[...] | None`, also where it cannot be evaluated."""
    if isinstance(annotation, Unresolved):
        return re.search(r"\bFactory\[", annotation.text) is not None
    if typing.get_origin(annotation) is Annotated:
        return any(isinstance(mark, FactoryMark) for mark in annotation.__metadata__)
    return is_union(annotation) and any(is_factory(option) for option in typing.get_args(annotation))


def lazy_classes(annotation: Any) -> Iterator[type]:
    """The Lazy classes that an annotation takes: of `Norm`, `Factory[Norm]`, `Norm | None`."""
    origin = typing.get_origin(annotation)
    kind = annotation if origin is None else origin
    if isinstance(kind, type) and hasattr(kind, "__fields__"):
        yield kind
    elif origin is Annotated:
        yield from lazy_classes(typing.get_args(annotation)[0])
    elif is_union(annotation):
        for option in typing.get_args(annotation):
            yield from lazy_classes(option)


def lazy_class(annotation: Any) -> type | None:
    """The first Lazy class in an annotation, if there is one."""
    return next(lazy_classes(annotation), None)


def settled(value: Any, annotation: Any) -> Any:
    """The one spelling of a value: `lr = 1` and `lr = 1.0` are one configuration; mappings and loose lists are frozen."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if type(value) is int:
        wants_float = annotation is float or (is_union(annotation) and float in args and int not in args)
        return float(value) if wants_float else value
    if origin is Annotated:
        return settled(value, args[0])
    if is_union(annotation):
        return settled(value, next((option for option in args if fits(value, option)), Any))
    if isinstance(value, tuple) and type(value) is tuple:
        kinds = _item_kinds(value, args) if origin is tuple else (Any,) * len(value)
        return tuple(map(settled, value, kinds))
    if isinstance(value, Mapping):
        kind = args[1] if len(args) == 2 else Any
        return MappingProxyType({k: settled(item, kind) for k, item in value.items()})
    return tuple(settled(item, Any) for item in value) if type(value) is list and annotation is Any else value


def fits(value: Any, annotation: Any) -> bool:
    """A conservative isinstance: False only when it is certain that the value is wrong."""
    kind: Any = type(value)
    if annotation is kind or annotation is Any or value is REQUIRED or isinstance(annotation, (Unresolved, TypeVar)):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float or annotation is int:
        return isinstance(value, int if annotation is int else (int, float)) and not isinstance(value, bool)
    if getattr(kind, "__universal__", False):
        return True
    if getattr(kind, "__wildcard__", False):
        options: tuple[Any, ...] = getattr(value, "options", ())
        return is_factory(annotation) and all(fits(option, annotation) for option in options)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, args[0])
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in args)
    if is_union(annotation):
        return any(fits(value, option) for option in args)
    return _fits_kind(value, annotation, origin, args)


def _fits_kind(value: Any, annotation: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    if origin is tuple:
        kinds = _item_kinds(value, args) if isinstance(value, tuple) else None
        return kinds is not None and len(kinds) == len(value) and all(map(fits, value, kinds))
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(fits(k, args[0]) and fits(v, args[1]) for k, v in value.items())
    if annotation is dict:
        return isinstance(value, Mapping)
    if origin is collections.abc.Callable or annotation is collections.abc.Callable:
        return callable(value) and not hasattr(type(value), "__fields__")
    kind = origin if isinstance(origin, type) else annotation
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind) or getattr(value, "__stands_for_code__", False)
    return True


def _item_kinds(value: tuple[Any, ...], args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0],) * len(value) if len(args) == 2 and args[1] is ... else args


def item_annotation(annotation: Any, index: int = 0) -> Any:
    """What an annotation says about an item of a tuple, or a value of a mapping."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated or is_union(annotation):
        options = [args[0]] if origin is Annotated else args
        return next((item for option in options if (item := item_annotation(option, index)) is not Any), Any)
    if origin is tuple:
        return args[0] if len(args) == 2 and args[1] is ... else args[index] if index < len(args) else Any
    return args[1] if origin in (dict, Mapping) else Any


def describe(annotation: Any) -> str:
    """The annotation as a person would write it."""
    if isinstance(annotation, Unresolved):
        return annotation.text
    if typing.get_origin(annotation) is Annotated:
        return describe(typing.get_args(annotation)[0])
    if is_union(annotation):
        return " | ".join(map(describe, typing.get_args(annotation)))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and origin is None:
        return "None" if annotation is type(None) else annotation.__name__
    if isinstance(origin, type) and args and origin is not collections.abc.Callable:
        return f"{origin.__name__}[{', '.join('...' if a is ... else describe(a) for a in args)}]"
    return str(annotation).replace("typing.", "").replace("collections.abc.", "")
