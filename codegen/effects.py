"""Statements at module level that change a definition: they go into the file with what they change.

`Class.attribute = value`, `library.impl(...)`, `@function.register`: whoever needs the definition needs them too.
"""

from __future__ import annotations

import ast
from collections.abc import Collection

from .keys import Unit
from .modules import Module
from .scopes import FUNCTIONS


def effects(module: Module, names: Collection[str]) -> list[ast.stmt]:
    """The statements of a module that change one of the definitions in `names`."""
    return [s for s in module.tree.body if (root := _changed(module, s)) is not None and root in names]


def unit_of(module: Module, statement: ast.stmt) -> Unit:
    """The unit under which such a statement is kept; it has no name of its own."""
    return Unit(module.name, f"line {statement.lineno}")


def statement_of(module: Module, unit: Unit) -> ast.stmt:
    """The statement that `unit_of` named."""
    line = int(unit.name.removeprefix("line "))
    return next(s for s in module.tree.body if s.lineno == line)


def is_effect(unit: Unit) -> bool:
    """Whether a unit is a statement without a name."""
    return unit.name.startswith("line ")


def assigned(module: Module, name: str) -> set[str]:
    """The attributes that statements of a module set on one of its definitions."""
    return {
        t.attr
        for s in effects(module, {name})
        if isinstance(s, ast.Assign)
        for t in s.targets
        if isinstance(t, ast.Attribute)
    }


def _changed(module: Module, statement: ast.stmt) -> str | None:
    """The name of the definition that a statement changes."""
    if isinstance(statement, ast.Assign):
        target: ast.expr = statement.targets[0]
        if isinstance(target, ast.Attribute):
            return _root(target)
    elif isinstance(statement, ast.AugAssign) and isinstance(statement.target, ast.Attribute):
        return _root(statement.target)
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        function = statement.value.func
        root = _root(function) if isinstance(function, ast.Attribute) else None
        held = vars(module.live).get(root or "")
        return None if isinstance(held, (dict, list, set)) else root
    elif isinstance(statement, (*FUNCTIONS, ast.ClassDef)):
        for decorator in statement.decorator_list:
            function = decorator.func if isinstance(decorator, ast.Call) else decorator
            root = _root(function) if isinstance(function, ast.Attribute) else None
            if root is not None and root != statement.name and any(a is None for _, a in module.bindings.get(root, [])):
                return root
    return None


def _root(node: ast.expr) -> str | None:
    while isinstance(node, (ast.Attribute, ast.Call)):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None
