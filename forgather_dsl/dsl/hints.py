"""What to write instead: of a value that does not fit its field, and of a name that the class does not have."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Iterator
from typing import Any

from .annotations import describe, fits, is_factory, item_annotation, lazy_class
from .errors import ConfigError, article, suggest
from .words import Patch


def got(value: Any) -> str:
    """A value of the wrong kind, named."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    kind = type(value)
    return kind.__name__ if hasattr(kind, "__fields__") else f"{value!r}, {article(kind.__name__)}"


def advice(value: Any, annotation: Any) -> str:
    """`; write ...` where it is clear what was meant, else nothing."""
    kind: Any = lazy_class(annotation)
    if isinstance(value, type) and hasattr(value, "__fields__"):
        return f"; write {value.__name__}() with brackets"
    if isinstance(value, Patch):
        return f"; a patch stands in a class body or a call, here write replace(super().field, ...) or {value.cls.__name__}(...)"
    if getattr(value, "__wildcard__", False):
        return _cycle_advice(value, annotation, kind)
    if isinstance(value, str) and kind is not None:
        known = named_subclasses(kind)
        return f"; write {value}()" if value in known else suggest(value, known, "there are")
    if typing.get_origin(annotation) is tuple:
        return _tuple_advice(value, annotation)
    for number in (int, float):
        if describe(annotation).partition(" ")[0] == number.__name__ and isinstance(value, (str, float)):
            try:
                same = number(value)
            except ValueError:
                continue
            return f"; write {same!r}" if isinstance(value, str) or same == value else ""
    return ""


def _tuple_advice(value: Any, annotation: Any) -> str:
    if isinstance(value, list):
        return f"; write a tuple: ({', '.join(map(repr, value))}{',' if len(value) == 1 else ''})"
    if not isinstance(value, tuple):
        return f"; write a tuple: ({value!r},)" if fits(value, item_annotation(annotation)) else ""
    kinds = (item_annotation(annotation, i) for i in range(len(value)))
    return next((hint for item, kind in zip(value, kinds) if not fits(item, kind) and (hint := advice(item, kind))), "")


def _cycle_advice(value: Any, annotation: Any, kind: Any) -> str:
    if not is_factory(annotation):
        return f"; alternating over layers needs a field annotated Factory[{kind.__name__ if kind else '...'}]"
    return f" of {', '.join(repr(option) for option in value.options if not fits(option, annotation))}"


def unknown(owner: Any, name: str) -> str:
    """Where the name stands instead, below or beside a Lazy or a Lazy class; else the nearest names, else all."""
    cls = owner if isinstance(owner, type) else type(owner)
    below = list(_below(owner, name))
    hint = suggest(name, cls.__fields__, exact=[f"{field}.{name}" for field, _ in below])
    if below or hint.startswith("; did you mean"):
        return hint
    return _beside(cls, name) or hint


def unknown_in_body(bases: tuple[Any, ...], name: str, inherited: Iterable[str]) -> str:
    """The same for a class body, with the patch to write where the name stands below a field."""
    lazies = [base for base in bases if hasattr(base, "__fields__")]
    below = dict(found for base in lazies for found in _below(base, name))
    patches = [f"{field} = patch({kind.__name__}, {name}=...)" for field, kind in below.items()]
    hint = suggest(name, inherited, exact=[f"{field}.{name}" for field in below])
    return f"{hint} write {' or '.join(patches[:3])}" if patches else hint


def _below(owner: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Fields that hold something with a field of this name, and its class: `optimizer` for `lr`."""
    from .fields import annotation_of
    from .resolve import fold

    cls = owner if isinstance(owner, type) else type(owner)
    for field in cls.__fields__:
        held = fold(cls, field).provider if owner is cls else _held(owner, field)
        kind = type(held) if hasattr(type(held), "__fields__") else lazy_class(annotation_of(cls, field))
        if name in getattr(kind, "__fields__", ()):
            yield field, kind


def _held(owner: Any, field: str) -> Any:
    try:
        return getattr(owner, field)
    except ConfigError:
        return None


def _beside(cls: Any, name: str) -> str:
    """Other kinds of the same thing that have such a field: `; Pipeline has it` for a `Single`."""
    kinds = [base for base in cls.__mro__[1:] if base.__dict__.get("__abstract__")]
    if len(kinds) < 2 or getattr(cls, "__root__", False):  # Lazy alone is no kind; experiments are not alternatives
        return ""
    known = named_subclasses(kinds[-2])
    having = sorted(other for other, kind in known.items() if name in kind.__fields__)  # type: ignore[attr-defined]
    return f"; {', '.join(having)} {'has' if len(having) == 1 else 'have'} it" if having else ""


def named_subclasses(cls: Any) -> dict[str, type]:
    """Concrete classes below (and including) `cls` by name; of two with one name, the one defined last."""
    hidden = cls.__abstract__ or "__origin__" in cls.__dict__  # the latter stands in for a class that was not imported
    out: dict[str, type] = {} if hidden else {cls.__name__: cls}
    for below in cls.__subclasses__():
        out.update(named_subclasses(below))
    return out
