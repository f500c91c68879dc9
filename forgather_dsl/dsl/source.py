"""Where things are written: the line of a name in a class body, found in the source on demand, so it costs nothing otherwise."""

from __future__ import annotations

import ast
import functools
import linecache
from typing import Any


@functools.lru_cache(maxsize=256)
def _classes(file: str, size: int) -> list[ast.ClassDef]:
    """Every class of a file; `size` makes a changed file (a notebook cell, an edit) a new entry."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except SyntaxError:
        return []
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def class_body(cls: Any) -> ast.ClassDef | None:
    """The syntax tree of a Lazy class, or None where there is no source (`exec`, the plain prompt)."""
    file, line = cls.__line__
    found = [c for c in _classes(file, len(linecache.getlines(file))) if c.name == cls.__name__]
    if not found:
        return None
    return min(found, key=lambda c: abs(c.lineno - line))  # decorators move the line Python reports


def line_of(cls: Any, name: str = "") -> tuple[str, int]:
    """File and line where `cls` assigns or defines `name`; of the class itself when it does not."""
    file, line = cls.__line__
    body = class_body(cls)
    for statement in body.body if body else ():
        targets: list[Any] = []
        if isinstance(statement, ast.Assign):
            targets = list(statement.targets)
        elif isinstance(statement, ast.AnnAssign):
            targets = [statement.target]
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef)) and statement.name == name:
            return file, statement.lineno
        named = [node for target in targets for node in ast.walk(target)]  # also a, b = 1, 2
        if any(isinstance(node, ast.Name) and node.id == name for node in named):
            return file, statement.lineno
    return file, line
