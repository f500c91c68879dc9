"""Provenance: every class and line that had a say in a value, most derived first. Read off the MRO on demand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .errors import ConfigError, place, suggest
from .graph import leaf_text
from .lazy import Lazy, Stack, given
from .resolve import fold
from .source import line_of
from .words import Derived, Patch


class Said(NamedTuple):
    """One say: the value as text, who said it (a class, `--set`, `given` to the instance), and `file:line`."""

    value: str
    who: str
    where: str


def explain(root: Lazy[Any], path: str) -> list[Said]:
    """Who said what about `path`, the winner first. Raises ConfigError for a path that does not exist."""
    return list(_explain(root, _parts(path), path))


def _parts(path: str) -> list[str]:
    return path.replace("[", ".[").strip(".").split(".")


def _explain(value: Any, parts: list[str], path: str) -> Iterator[Said]:
    head, rest = parts[0], parts[1:]
    if isinstance(value, tuple) and head.startswith("["):
        index = int(head[1:-1])
        if index >= len(value):
            raise ConfigError(f"{path}: there are {len(value)} items")
        if rest:
            yield from _explain(value[index], rest, path)
        return
    if not isinstance(value, Lazy):
        raise ConfigError(f"{path}: {leaf_text(value)} has no fields")
    cls = type(value)
    if head not in cls.__fields__:
        raise ConfigError(f"{path}: {cls.__name__} has no field {head!r}{suggest(head, cls.__fields__)}")
    said = [*_said_by_instance(value, head, rest), *_said_by_classes(cls, head, rest)]
    yield from said
    if not rest:
        return
    child = getattr(value, head)
    provider = fold(cls, head)
    if isinstance(child, Lazy) and rest[0] in given(child):
        if not said and isinstance(provider.provider, Derived) and provider.provided_by is not None:
            text = _text(child, rest)
            where = place(*line_of(provider.provided_by, head))
            if text is not None:
                yield Said(text, f"computed by {provider.provided_by.__qualname__}.{head}", where)
        if len(rest) > 1:
            yield from (s for s in _explain(child, rest, path) if s.who != "given")
        else:
            yield from _said_by_classes(type(child), rest[0], [])
        return
    yield from _explain(child, rest, path)


def _said_by_classes(cls: type[Lazy[Any]], head: str, rest: list[str]) -> Iterator[Said]:
    for base in fold(cls, head).chain:
        text = _text(base.__own__[head], rest)  # type: ignore[attr-defined]
        if text is not None:
            yield Said(text, base.__qualname__, place(*line_of(base, head)))


def _said_by_instance(value: Lazy[Any], head: str, rest: list[str]) -> Iterator[Said]:
    said = given(value).get(head)
    if head not in given(value):
        return
    for part in reversed(said.parts) if isinstance(said, Stack) else (said,):
        text = _text(part, rest)
        if text is not None:
            where = getattr(part, "where", None)
            yield Said(text, getattr(part, "said_by", "given"), place(*where) if where else "")


def _text(value: Any, rest: list[str]) -> str | None:
    """What `value` says about the rest of the path, or None."""
    if isinstance(value, Derived):
        return "computed" if not rest else None
    for part in rest:
        values = value.values if isinstance(value, Patch) else given(value) if isinstance(value, Lazy) else {}
        if part not in values:
            return None
        value = values[part]
    if isinstance(value, Lazy):
        return repr(value)
    return repr(value) if isinstance(value, Patch) else leaf_text(value)
