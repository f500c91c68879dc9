"""The walk over expressions, node by node, and the note of every choice that is made on the way."""

from __future__ import annotations

import ast
import sys

from .keys import Key, Unit
from .reify import Reifier
from .source import Decision
from .walk import Use


class Dispatch(Reifier):
    """What every kind of expression is walked by."""

    role = "value"  # what a reference is used for: "value", "call" or "type"

    def decided(self, node: ast.AST, outcome: str, used: list[Use]) -> None:
        """Note a choice that the file no longer has; what it rests on is fixed."""
        self.fix(used)
        text = " ".join(ast.unparse(node).split())
        self.log.decisions.add(Decision(self.module.name, getattr(node, "lineno", 0), text, outcome))

    def fix(self, used: list[Use]) -> None:
        """Note that facts decided something."""
        for kind, owner, name in used:
            if kind == "parameter":
                self.log.fixed.add((owner, name))
            elif kind == "field":
                self.log.fixed_fields.add((owner, name))
            else:
                self.log.folded.add((owner, name))

    def expr(self, node: ast.AST | None) -> None:
        """Walk an expression."""
        if node is None:
            return
        method = getattr(self, f"_expr_{type(node).__name__.lower()}", None)
        if method is not None:
            method(node)
        else:
            self.children(node)

    def children(self, node: ast.AST) -> None:
        """Walk the parts of an expression as values."""
        outer, self.role = self.role, "value" if self.role == "call" else self.role
        for child in ast.iter_child_nodes(node):
            self.expr(child)
        self.role = outer

    def in_role(self, role: str, node: ast.AST | None) -> None:
        """Walk an expression that is used as something else than a value."""
        outer, self.role = self.role, role
        self.expr(node)
        self.role = outer

    def text_of(self, node: ast.expr) -> str:
        """The text of an expression with its changes."""
        return self.captured(self.text.start(node), self.text.end(node), lambda: self.expr(node))

    def annotation(self, node: ast.expr | None) -> None:
        """Walk an annotation; it is never evaluated where it stands."""
        self.soft += 1
        self.in_role("type", node)
        self.soft -= 1

    def reference(self, node: ast.expr, key: Key) -> None:
        """An expression that names a definition or an import."""
        if isinstance(key, Unit):
            live = vars(sys.modules[key.module]).get(key.name)
            if self.role == "value" and (isinstance(live, type) or callable(live)):
                self.escapes(live)
        self.refer(node, key)
