"""The one walk over a resolved experiment; printing, comparing, checking and drawing are small functions over its entries."""

from __future__ import annotations

import enum
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .errors import ConfigError
from .lazy import Lazy, given


class Entry(NamedTuple):
    """One place in the tree. `shared` is the path where the same Lazy was met first, or None."""

    path: str
    value: Any
    shared: str | None = None
    error: ConfigError | None = None
    owner: Any = None  # the Lazy whose field this is


def walk(root: Any, path: str = "", *, strict: bool = True) -> Iterator[Entry]:
    """Every Lazy and leaf, depth first, in declaration order. A shared Lazy is entered once.

    With `strict=False` a field that does not resolve is an entry with its error, instead of raising it.
    """
    yield from _walk(root, path, {}, strict, None)


def _walk(value: Any, path: str, seen: dict[int, str], strict: bool, owner: Any) -> Iterator[Entry]:
    if isinstance(value, Lazy):
        if id(value) in seen:
            yield Entry(path, value, seen[id(value)], None, owner)
            return
        seen[id(value)] = path
    yield Entry(path, value, None, None, owner)
    for name, child in children(value, strict):
        below = join(path, name)
        if isinstance(child, ConfigError):
            yield Entry(below, None, None, child, value)
        else:
            yield from _walk(child, below, seen, strict, value)


def join(path: str, name: str) -> str:
    """`a` and `b` as `a.b`; `a` and `[0]` as `a[0]`."""
    return name if not path else path + name if name.startswith("[") else f"{path}.{name}"


def split_path(path: str) -> list[str]:
    """`a.b[0].c['x']` and `a.b.0.c.x` as their five parts. Raises ConfigError for anything else."""
    parts = re.findall(r"\[(?:'([^']*)'|\"([^\"]*)\"|([^\[\]]+))\]|([^.\[\]]+)", path)
    whole = re.fullmatch(r"[^.\[\]]+(?:\.[^.\[\]]+|\[(?:'[^']*'|\"[^\"]*\"|[^\[\]]+)\])*", path)
    if whole is None:
        raise ConfigError(f"{path!r} is not a path; write field.field, or field[0] for an item of a list")
    return ["".join(groups) for groups in parts]


def children(value: Any, strict: bool = True) -> Iterator[tuple[str, Any]]:
    """Name and value of what stands directly below; with `strict=False` the error in place of a value."""
    if isinstance(value, Lazy):
        for name in type(value).__fields__:
            try:
                child = getattr(value, name)
            except ConfigError as error:
                if strict:
                    raise
                child = error
            yield name, child
    elif holds_lazy(value):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        yield from ((f"[{key!r}]", item) for key, item in items)


def holds_lazy(value: Any) -> bool:
    """Whether a tuple or mapping has a Lazy somewhere in it; if not it is one leaf."""
    if isinstance(value, (tuple, Mapping)):
        items = value.values() if isinstance(value, Mapping) else value
        return any(isinstance(item, Lazy) or holds_lazy(item) for item in items)
    return False


class Graph(NamedTuple):
    """The lazy object graph: nodes by path of first visit, edges as (from path, field, to path)."""

    nodes: dict[str, Any]
    edges: list[tuple[str, str, str]]


def graph(root: Lazy[Any]) -> Graph:
    """Lazies and how they hold one another; a node with two incoming edges is shared."""
    given(root)
    nodes: dict[str, Any] = {}
    edges: list[tuple[str, str, str]] = []
    for entry in walk(root):
        if not isinstance(entry.value, Lazy):
            continue
        if entry.shared is None:
            nodes[entry.path] = entry.value
        if entry.path:
            owner = max((p for p in nodes if p != entry.path and _above(p, entry.path)), key=len)
            edges.append((owner, entry.path[len(owner) :].lstrip("."), entry.shared or entry.path))
    return Graph(nodes, edges)


def _above(owner: str, path: str) -> bool:
    return not owner or path.startswith((owner + ".", owner + "["))


def leaf_text(value: Any) -> str:
    """A leaf as it is printed and hashed: the same in every process, and before and after it was written as JSON.

    Code stands as `module:name`, without the package or folder, which depend on how its file was reached.
    """
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        from .pickling import path_of

        where, _, name = path_of(value).rpartition(":")
        module = re.sub(r".*[/\\.]", "", where.removesuffix(".py"))
        return f"{module}:{name}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{leaf_text(k)}: {leaf_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, enum.Enum):
        return leaf_text(value.value)
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    items: Any = value
    if isinstance(value, (frozenset, set)):
        items = tuple(sorted(value, key=repr))  # their own order changes from process to process
    if type(items) is tuple:
        return f"({', '.join(map(leaf_text, items))}{',' if len(items) == 1 else ''})"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))  # an address would be another one in the next process


def mermaid(found: Graph) -> str:
    """The graph in mermaid's language."""
    names = {path: f"n{i}" for i, path in enumerate(found.nodes)}
    lines = ["graph TD"]
    lines += [f'  {names[path]}["{type(node).__name__}"]' for path, node in found.nodes.items()]
    lines += [f'  {names[a]} -- "{_quoted(field)}" --> {names[b]}' for a, field, b in found.edges]
    return "\n".join(lines) + "\n"


def dot(found: Graph) -> str:
    """The graph in Graphviz's language."""
    names = {path: f"n{i}" for i, path in enumerate(found.nodes)}
    lines = ["digraph experiment {", "  node [shape=box];"]
    lines += [f'  {names[path]} [label="{type(node).__name__}"];' for path, node in found.nodes.items()]
    lines += [f'  {names[a]} -> {names[b]} [label="{_quoted(field)}"];' for a, field, b in found.edges]
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    return text.replace('"', "'")
