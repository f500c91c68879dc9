"""Everything wrong with an experiment at once: missing values, patches that do not apply, validators, and its own `__check__`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from .errors import ConfigError, MissingValue, PatchError, place
from .graph import walk
from .lazy import Lazy, accept
from .resolve import fold
from .source import class_body, line_of
from .words import Patch


def problems(root: Lazy[Any]) -> list[ConfigError]:
    """Every root cause, once. Rules of the components' own `__check__` are asked only when all values are there."""
    found: dict[str, ConfigError] = {}
    nodes: list[tuple[str, Lazy[Any]]] = []
    for entry in walk(root, strict=False):
        if entry.error is not None:
            for text in entry.error.problems:
                found.setdefault(text, _one(entry.error, f"{entry.path}: {text}" if _is_bare(entry, text) else text))
        elif isinstance(entry.value, Lazy) and entry.shared is None:
            nodes.append((entry.path, entry.value))
    for path, node in nodes:
        for text in _revalidated(node):
            found.setdefault(text, ConfigError(f"{path}: {text}" if path else text))
    if not found:
        for path, node in nodes:
            for field, text in _own_rules(node):
                at = f"{path}.{field}" if path else field
                message = f"{at}: {text}{said_at(root, at)}"
                found.setdefault(message, ConfigError(message))
    return list(found.values())


def check(root: Lazy[Any]) -> None:
    """Raise one ConfigError that lists every problem, if there is any."""
    found = problems(root)
    if found:
        texts = [str(problem) for problem in found]
        kind = type(found[0]) if len({type(p) for p in found}) == 1 else ConfigError
        raise kind(f"{type(root).__qualname__}:\n  " + "\n  ".join(texts) if len(texts) > 1 else texts[0], texts)


def missing(root: Lazy[Any]) -> list[str]:
    """Paths that nothing fills."""
    return [e.path for e in walk(root, strict=False) if isinstance(e.error, MissingValue)]


def is_mixin(root: Lazy[Any]) -> bool:
    """Whether the class cannot stand alone because one of its patches finds nothing to apply to."""
    return any(isinstance(e.error, PatchError) for e in walk(root, strict=False))


def warnings(root: Lazy[Any]) -> list[str]:
    """What is legal and probably not meant: early binding in a class body, an assignment that discards a mixin's patch."""
    return [*_early_binding(type(root)), *_discarded(type(root))]


def said_at(root: Lazy[Any], path: str) -> str:
    """` (file:line)` of the class that last said something about `path`."""
    from .explain import explain

    try:
        said = explain(root, path)
    except ConfigError:
        return ""
    return f" ({said[0].where})" if said and said[0].where else ""


def _is_bare(entry: Any, text: str) -> bool:
    return isinstance(entry.error, MissingValue) and entry.path not in text


def _one(error: ConfigError, text: str) -> ConfigError:
    return type(error)(text)


def _revalidated(node: Lazy[Any]) -> Iterator[str]:
    """Derived and patched values, and validators that look at other fields."""
    for name in type(node).__fields__:
        try:
            accept(type(node), name, getattr(node, name), node)
        except ConfigError as error:
            if not isinstance(error, (MissingValue, PatchError)):
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
            if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or not isinstance(statement.value, ast.Call):
                continue
            for keyword in statement.value.keywords:
                name = getattr(keyword.value, "id", None)
                if isinstance(keyword.value, ast.Name) and name in base.__own__:  # type: ignore[attr-defined]
                    file, _ = line_of(base)
                    yield (
                        f"{place(file, statement.lineno)}: {keyword.arg}={name} takes the value of {name} in this class body; "
                        f"a subclass that changes {name} will not change it. Write it in a @derived method as self.{name}"
                    )


def _discarded(cls: type[Lazy[Any]]) -> Iterator[str]:
    for name in cls.__fields__:
        found = fold(cls, name)
        if found.provided_by is None:
            continue
        later = found.chain[found.chain.index(found.provided_by) + 1 :]
        for base in later:
            if isinstance(base.__own__[name], Patch) and not issubclass(found.provided_by, base):  # type: ignore[attr-defined]
                yield (
                    f"{place(*line_of(found.provided_by, name))}: {found.provided_by.__qualname__} assigns {name}, which discards "
                    f"the patch of {base.__qualname__} ({place(*line_of(base, name))}); put {base.__qualname__} first, or patch"
                )
