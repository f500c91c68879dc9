"""Everything wrong with an experiment at once: missing values, patches that do not apply, validators, and its own `__check__`."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from .errors import ConfigError, MissingValue, PatchError, place, title
from .fields import verify
from .graph import Entry, join, walk
from .lazy import Lazy, given
from .resolve import fold
from .source import class_body, line_of
from .words import Patch


def problems(root: Lazy[Any], /) -> list[ConfigError]:
    """Every root cause, once. Rules of the components' own `__check__` are asked only when all values are there."""
    given(root)
    entries = list(walk(root, strict=False))
    found: dict[str, ConfigError] = {}
    for path, error, itself in _causes(entries):
        how = _how_to_fill(entries, path) if itself else ""
        for text in error.problems:
            where = text if _names(text, path) or text.startswith(f"{title(type(root))}.{path}") else f"{path}: {text}"
            found.setdefault(where, type(error)(where + how))
    nodes = [(e.path, e.value) for e in entries if isinstance(e.value, Lazy) and e.shared is None]
    for path, node in nodes:
        for text in _revalidated(node):
            found.setdefault(text, ConfigError(f"{path}: {text}" if path else text))
    if not found:
        for path, node in nodes:
            for field, text in _own_rules(node):
                at = join(path, field)
                message = f"{at}: {text}{said_at(root, at)}"
                found.setdefault(message, ConfigError(message))
    return list(found.values())


def check(root: Lazy[Any], /, more: Iterable[ConfigError] = ()) -> None:
    """Raise one ConfigError that lists every problem, and those that a caller has found besides, if there is any."""
    found = [*problems(root), *more]
    if found:
        texts = [str(problem) for problem in found]
        kind = type(found[0]) if len({type(p) for p in found}) == 1 else ConfigError
        raise kind(f"{title(type(root))}:\n  " + "\n  ".join(texts) if len(texts) > 1 else texts[0], texts)


def missing(root: Lazy[Any], /) -> list[str]:
    """Paths that nothing fills."""
    return [path for path, error, _ in _causes(walk(root, strict=False)) if isinstance(error, MissingValue)]


def _causes(entries: Iterable[Entry]) -> list[tuple[str, ConfigError, bool]]:
    """Path, error, and whether the path is the very field, for each root cause of a walk's errors.

    A derived field fails with what it reads: that is reported once, where it stands if the walk came past it.
    """
    failed = [entry for entry in entries if entry.error is not None]  # keeps the instances alive, so ids stay apart
    causes: dict[Any, tuple[str, ConfigError, bool]] = {}
    for entry in failed:
        error: Any = entry.error
        here = (id(entry.owner), entry.path.rpartition(".")[2])
        missing_one = isinstance(error, MissingValue) and error.instance is not None
        cause = (id(error.instance), error.field) if missing_one else str(error)
        if cause not in causes or cause == here:
            causes[cause] = entry.path, error, cause == here
    return list(causes.values())


def _names(text: str, path: str) -> bool:
    return text.startswith((f"{path}:", f"{path} "))


def _how_to_fill(entries: list[Entry], path: str) -> str:
    """What to write for a missing value: `; write model = patch(Llama, dim=...) in a subclass, or --set model.dim=...`."""
    kinds = {e.path: type(e.value).__name__ for e in entries if isinstance(e.value, Lazy)}
    *above, name = path.split(".")
    text = f"{name}=..."
    for depth in range(len(above), 0, -1):
        kind = kinds.get(".".join(above[:depth]))
        if kind is None:
            return ""
        text = f"{above[depth - 1]}=patch({kind}, {text})"
    field, _, value = text.partition("=")
    return f"; write {field} = {value} in a subclass, or --set {path}=..."


def is_mixin(root: Lazy[Any]) -> bool:
    """Whether the class cannot stand alone because one of its patches finds nothing to apply to."""
    return any(isinstance(e.error, PatchError) for e in walk(root, strict=False))


def warnings(root: Lazy[Any]) -> list[str]:
    """What is legal and probably not meant.

    Early binding in a class body, an assignment that discards a mixin's patch, a new field that is nearly an old one.
    """
    cls = type(root)
    return [*_early_binding(cls), *_discarded(cls), *_nearly_old(cls)]


def said_at(root: Lazy[Any], path: str) -> str:
    """` (file:line)` of the class that last said something about `path`."""
    from .explain import explain

    try:
        said = explain(root, path)
    except Exception:  # this only adds to another error, and must not hide it
        return ""
    return f" ({said[0].where})" if said and said[0].where else ""


def _revalidated(node: Lazy[Any]) -> Iterator[str]:
    """Validators once more, with the instance, for those that look at other fields."""
    for name, attribute in type(node).__fields__.items():
        if attribute.validator is None:
            continue
        try:
            verify(type(node), name, getattr(node, name), node)
        except ConfigError as error:
            if name in node.__dict__:  # else it does not resolve, which the walk has seen
                yield str(error)


def _own_rules(node: Lazy[Any]) -> Iterator[tuple[str, str]]:
    rules = getattr(node, "__check__", None)
    if rules is not None:
        yield from rules()


def _early_binding(cls: type[Lazy[Any]]) -> Iterator[str]:
    for base in cls.__mro__:
        if base.__module__.startswith("forgather_dsl.") or "__own__" not in base.__dict__:
            continue
        for statement in getattr(class_body(base), "body", ()):
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
                continue
            calls = [node for node in ast.walk(statement.value) if isinstance(node, ast.Call)]
            for keyword in [keyword for call in calls for keyword in call.keywords]:
                if not isinstance(keyword.value, ast.Name) or keyword.value.id not in base.__own__:  # type: ignore[attr-defined]
                    continue
                name = keyword.value.id
                file, _ = line_of(base)
                yield (
                    f"{place(file, keyword.value.lineno)}: {keyword.arg}={name} takes the value of {name} in this class body; "
                    f"a subclass that changes {name} will not change it. Write it in a @derived method as self.{name}"
                )


def _nearly_old(cls: type[Lazy[Any]]) -> Iterator[str]:
    for base in cls.__mro__:
        if base.__module__.startswith("forgather_dsl.") or "__own__" not in base.__dict__:
            continue
        old = {name for above in base.__mro__[1:] for name in getattr(above, "__fields__", ())}
        for name in set(base.__own__) - old:  # type: ignore[attr-defined]
            for near in difflib.get_close_matches(name, old, n=1, cutoff=0.85):
                yield f"{place(*line_of(base, name))}: {title(base)} declares {name}, a new field; did you mean {near!r}?"


def _discarded(cls: type[Lazy[Any]]) -> Iterator[str]:
    for name in cls.__fields__:
        found = fold(cls, name)
        if found.provided_by is None:
            continue
        later = found.chain[found.chain.index(found.provided_by) + 1 :]
        for base in later:
            if isinstance(base.__own__[name], Patch) and not issubclass(found.provided_by, base):  # type: ignore[attr-defined]
                yield (
                    f"{place(*line_of(found.provided_by, name))}: {title(found.provided_by)} assigns {name}, which discards "
                    f"the patch of {title(base)} ({place(*line_of(base, name))}); put {title(base)} first, or patch"
                )
