"""What a field's annotation means: evaluated one at a time, where it was written, and compared with a value.

Annotations are read as text (`from __future__ import annotations`, Python 3.14's lazy ones) and evaluated only when
a value must be checked or parsed, so a name that exists only under TYPE_CHECKING costs its checks, not the import.
"""

from __future__ import annotations

import collections.abc
import sys
import types
import typing
from typing import Annotated, Any, TypeVar

T = TypeVar("T")


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


def own_annotations(cls: type) -> dict[str, Any]:
    """The annotations written in this class body, unevaluated where Python allows it."""
    if sys.version_info >= (3, 14):
        import annotationlib  # PEP 649: annotations are computed on demand

        return annotationlib.get_annotations(cls, format=annotationlib.Format.FORWARDREF)
    return dict(cls.__dict__.get("__annotations__", {}))  # noqa: RUF063 inspect's version needs a whole class


def is_class_variable(annotation: Any) -> bool:
    """Whether the annotation is ClassVar, written out or as text."""
    text = annotation if isinstance(annotation, str) else str(annotation)
    return text.removeprefix("typing.").removeprefix("t.").startswith("ClassVar")


def evaluate(annotation: Any, module: str) -> Any:
    """The annotation as an object, or `Unresolved`."""
    text = getattr(annotation, "__forward_arg__", annotation)
    if not isinstance(text, str):
        return annotation
    names = dict(vars(typing))
    names.update(vars(sys.modules[module]) if module in sys.modules else {})
    try:
        return eval(text, names)
    except Exception as error:  # anything may be written in an annotation
        return Unresolved(text, str(error))


def is_factory(annotation: Any) -> bool:
    """Whether the annotation is `Factory[...]`, also as `Factory[...] | None`."""
    if typing.get_origin(annotation) is Annotated:
        return any(isinstance(mark, FactoryMark) for mark in annotation.__metadata__)
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return any(is_factory(option) for option in typing.get_args(annotation))
    return False


def lazy_class(annotation: Any) -> type | None:
    """The Lazy class in an annotation (`Norm`, `Factory[Norm]`, `Norm | None`), if there is one."""
    from .lazy import Lazy

    origin = typing.get_origin(annotation)
    if isinstance(annotation, type) and origin is None:
        return annotation if issubclass(annotation, Lazy) else None
    if isinstance(origin, type) and issubclass(origin, Lazy):
        return origin
    if origin is Annotated:
        return lazy_class(typing.get_args(annotation)[0])
    if origin in (typing.Union, types.UnionType):
        return next((found for option in typing.get_args(annotation) if (found := lazy_class(option))), None)
    return None


def fits(value: Any, annotation: Any) -> bool:
    """A conservative isinstance: False only when it is certain that the value is wrong."""
    from .lazy import Lazy
    from .words import REQUIRED

    if annotation is Any or value is REQUIRED or isinstance(annotation, (Unresolved, TypeVar)):
        return True
    if annotation is None or annotation is type(None):
        return value is None
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(value, Lazy) and type(value).__universal__:
        return True
    if isinstance(value, Lazy) and type(value).__wildcard__:
        options: tuple[Any, ...] = getattr(value, "options", ())
        return is_factory(annotation) and all(fits(option, annotation) for option in options)
    if origin is Annotated:
        return fits(value, args[0])
    if origin is typing.Literal:
        return any(value == option and type(value) is type(option) for option in args)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, option) for option in args)
    if origin is tuple:
        return isinstance(value, tuple) and _tuple_fits(value, args)
    if origin in (dict, collections.abc.Mapping):
        return isinstance(value, collections.abc.Mapping)
    if origin is collections.abc.Callable:
        return callable(value) and not isinstance(value, Lazy)
    kind = origin if isinstance(origin, type) else annotation
    if isinstance(kind, type) and not getattr(kind, "_is_protocol", False):
        return isinstance(value, kind)
    return True


def _tuple_fits(value: tuple[Any, ...], args: tuple[Any, ...]) -> bool:
    if len(args) == 2 and args[1] is ...:
        return all(fits(item, args[0]) for item in value)
    return len(value) == len(args) and all(fits(item, arg) for item, arg in zip(value, args))


def describe(annotation: Any) -> str:
    """The annotation as a person would write it."""
    if isinstance(annotation, Unresolved):
        return annotation.text
    if typing.get_origin(annotation) is Annotated:
        return describe(typing.get_args(annotation)[0])
    if isinstance(annotation, type) and typing.get_origin(annotation) is None:
        return "None" if annotation is type(None) else annotation.__name__
    return str(annotation).replace("typing.", "")
