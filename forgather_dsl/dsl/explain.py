"""Provenance: every class and line that had a say in a value, the winner first. Read off the MRO on demand.

An assignment ends the search for what lies below it; a patch, swap or overlay does not. `_mentions` says how far down
the path the search ended, so that defaults of the replaced type are not named.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from typing import Any, NamedTuple

from .errors import ConfigError, UnknownField, place, suggest, title
from .graph import leaf_text, split_path
from .hints import unknown
from .lazy import Lazy, given
from .overlay import Overlay
from .resolve import fold
from .source import line_of
from .words import REQUIRED, Derived, Patch


class Said(NamedTuple):
    """One say: the value as text, who said it (a class, `--set`, `given` to the instance), and `file:line`."""

    value: str
    who: str
    where: str


class _Source(NamedTuple):
    value: Any
    who: str
    where: str


def explain(root: Lazy[Any], path: str, /) -> list[Said]:
    """Who said what about `path`, the winner first. Raises ConfigError for a path that does not exist."""
    given(root)
    parts = split_path(path)
    value: Any = root
    for depth, part in enumerate(parts):
        value = step(value, part, ".".join(parts[: depth + 1]))
    said = list(_explain(root, parts, True))
    if said and said[0].who == "--set":  # as it was understood, not as it was typed
        said[0] = said[0]._replace(value=_text(value))
    return said


def step(value: Any, part: str, path: str) -> Any:
    """What stands under one name or number. Raises ConfigError when nothing does."""
    if isinstance(value, Lazy):
        if part not in type(value).__fields__:
            raise UnknownField(f"{path}: {type(value).__name__} has no field {part!r}{unknown(value, part)}")
        return getattr(value, part)
    if isinstance(value, tuple):
        if not part.isdecimal() or int(part) >= len(value):
            raise ConfigError(f"{path}: there are {len(value)} items, numbered from 0")
        return value[int(part)]
    if isinstance(value, Mapping):
        if part not in value:
            raise ConfigError(f"{path}: no key {part!r}{suggest(part, map(str, value), 'keys')}")
        return value[part]
    raise ConfigError(f"{path}: {leaf_text(value)} has nothing below it")


def _explain(node: Any, parts: list[str], with_given: bool) -> Iterator[Said]:
    """Says about `parts` below a resolved Lazy: the instance's own if asked for, then those of its classes."""
    head, rest = parts[0], parts[1:]
    if not isinstance(node, Lazy):
        if rest:
            yield from _explain(step(node, head, head), rest, with_given)
        return
    sources = [*(_given_sources(node, head) if with_given else ()), *_class_sources(type(node), head)]
    if not rest:
        yield from (Said(_text(source.value), source.who, source.where) for source in sources)
        return
    child = step(node, head, head)
    settled = None
    for source in _through_call(sources, rest) if getattr(type(child), "__universal__", False) else sources:
        settled = yield from _mentions(node, source, rest)
        if settled is not None:
            break
    for part in rest[: settled or 0]:
        child = step(child, part, part)
    yield from _explain(child, rest[settled or 0 :], False)


def _through_call(sources: list[_Source], rest: list[str]) -> Iterator[_Source]:
    """Overlays name the arguments of a `call` as if they were its fields."""
    for source in sources:
        said = source.value
        if isinstance(said, Overlay) and rest[0] == "arguments" and "arguments" not in said.below:
            source = source._replace(value=Overlay(said.path, REQUIRED, {"arguments": said}))
        yield source


def _given_sources(node: Lazy[Any], head: str) -> Iterator[_Source]:
    said = given(node).get(head, REQUIRED)
    if said is REQUIRED:
        return
    for part in reversed(said.parts) if isinstance(said, Patch) else (said,):
        where = getattr(part, "where", None) if isinstance(part, Patch) else None
        who = part.said_by if isinstance(part, Patch) else "given"
        yield _Source(
            getattr(part, "value", part) if isinstance(part, Patch) else part, who, place(*where) if where else ""
        )


def _class_sources(cls: type[Lazy[Any]], head: str) -> Iterator[_Source]:
    for base in fold(cls, head).chain:
        yield _Source(base.__own__[head], title(base), place(*line_of(base, head)))  # type: ignore[attr-defined]


def _mentions(node: Any, source: _Source, rest: list[str]) -> Generator[Said, None, int | None]:
    """What one say mentions about `rest` below its field.

    Returns how many parts of `rest` down an assignment stands that settles everything below; None if none does.
    """
    value, who, where = source
    if isinstance(value, Derived):
        made = value.function(node)
        computed = _Source(made, f"computed by {who}.{value.function.__name__}", where)
        return (yield from _mentions(node, computed, rest))
    if isinstance(value, Patch):
        named: Mapping[str, Any] = value.values
        assigns = _whole_of(value)
    else:
        named = given(value) if isinstance(value, Lazy) else _items(value)
        assigns = value is not REQUIRED
    ended = 0 if assigns else None
    if rest[0] not in named:
        return ended
    inner = _Source(_said_by(named[rest[0]]), who, where)
    if len(rest) == 1:
        yield Said(_text(inner.value), who, where)
        return ended
    deeper = yield from _mentions(node, inner, rest[1:])
    return ended if deeper is None else deeper + 1


def _whole_of(patch: Patch) -> bool:
    """Whether an overlay assigns the field as a whole, more than its type's name."""
    return isinstance(getattr(patch, "whole", None), (Mapping, Lazy))


def _said_by(value: Any) -> Any:
    """An overlay of one leaf is that leaf."""
    whole = getattr(value, "whole", REQUIRED) if isinstance(value, Patch) else REQUIRED
    return whole if whole is not REQUIRED and not getattr(value, "below", None) else value


def _items(value: Any) -> Mapping[str, Any]:
    if isinstance(value, tuple):
        return {str(i): item for i, item in enumerate(value)}
    return value if isinstance(value, Mapping) else {}


def _text(value: Any) -> str:
    if isinstance(value, Derived):
        return "computed"
    return repr(value) if isinstance(value, (Lazy, Patch)) else leaf_text(value)
