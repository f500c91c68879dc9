"""One unit: a definition at module level, walked into the text that stands for it in the file."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass, field
from typing import Any

from . import edits
from .config import Configs
from .drift import replaced
from .effects import is_effect, statement_of
from .facts import World
from .keys import Key, Unit
from .modules import Module
from .scopes import FUNCTIONS

_DEFINITIONS = (*FUNCTIONS, ast.ClassDef)


@dataclass
class Written:
    """The text of a unit, with marks for the names in it."""

    unit: Unit
    node: ast.AST
    text: str
    constant: bool
    forbidden: dict[Key, set[str]] = field(default_factory=dict)


def write(world: World, unit: Unit) -> Written:
    """Walk the definition of a unit. What cannot be written is noted as problems."""
    module = world.modules.read(unit.module)
    walker = Units(world, module, unit)
    if is_effect(unit):
        node = statement_of(module, unit)
        return Written(unit, node, walker.effect(node), False, walker.forbidden)
    live = vars(module.live).get(unit.name)
    node = _definition(module, unit, live)
    if problem := replaced(module, unit.name, node, live):
        walker.log.problems.append((unit, problem))
    walker.opaque = world.is_opaque(unit.module, unit.name)
    walker.guarded(node)
    if isinstance(live, type) and live in world.configs and isinstance(node, ast.ClassDef) and not walker.opaque:
        return Written(unit, node, walker.config(node, live), False, walker.forbidden)
    if isinstance(node, _DEFINITIONS):
        return Written(unit, node, walker.definition(node), False, walker.forbidden)
    return Written(unit, node, walker.constant(node, live), True, walker.forbidden)


def _definition(module: Module, unit: Unit, live: Any) -> ast.stmt:
    """The statement that bound the name to what it holds."""
    found = [s for s, alias in module.bindings[unit.name] if alias is None]
    if len(found) == 1:
        return found[0]
    inner = inspect.unwrap(live) if callable(live) else live
    line = getattr(getattr(inner, "__code__", None), "co_firstlineno", None)
    for statement in found:
        if isinstance(statement, FUNCTIONS) and line == module.first_line(statement):
            return statement
    if isinstance(live, type):
        firsts = {f.__code__.co_firstlineno for f in vars(live).values() if inspect.isfunction(f)}
        for statement in found:
            if isinstance(statement, ast.ClassDef) and any(
                statement.lineno <= i <= (statement.end_lineno or 0) for i in firsts
            ):
                return statement
    return found[-1]


class Units(Configs):
    """The walk over whole units."""

    def guarded(self, node: ast.stmt) -> None:
        """A definition that stands in an `if` about this machine cannot be chosen for another."""
        for outer in ast.walk(self.module.tree) if node.col_offset else ():
            if (
                isinstance(outer, ast.If)
                and outer.lineno < node.lineno <= (outer.end_lineno or 0)
                and outer.col_offset < node.col_offset
            ):
                why = self.taint(outer.test)
                if why:
                    self.problem(
                        outer,
                        f"{why} decides which {self.unit.name} there is",
                        "make it an argument of the constructor",
                    )

    def definition(self, node: ast.stmt) -> str:
        """The text of a function or a class, at no indentation."""
        assert isinstance(node, _DEFINITIONS)
        start = self.module.starts[self.lead(node) - 1]
        end = self.module.starts[node.end_lineno or 0]
        self.rename(node)
        self.statement(node)
        if isinstance(node, FUNCTIONS):
            self._returns_taint(node)
        text = edits.applied(self.text, start, end, self.edits)
        return edits.reindented(text, edits.indentation(self.module.line(self.module.first_line(node))), "")

    def effect(self, node: ast.stmt) -> str:
        """The text of a statement that changes a definition."""
        start = self.module.starts[self.lead(node) - 1]
        self.statement(node)
        return edits.applied(self.text, start, self.module.starts[node.end_lineno or 0], self.edits)

    def _returns_taint(self, node: ast.AST) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Return) and (why := self.taint(part.value)):
                self.log.tainted_units[self.unit] = why

    def constant(self, node: ast.stmt, live: Any) -> str:
        """The text of an assignment; where what it made was changed later, its value now."""
        module = self.module
        several = len([s for s, alias in module.bindings[self.unit.name] if alias is None]) > 1
        value = getattr(node, "value", None)
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or several or value is None or self._mutated(value, live):
            return self._present(node, live)
        why = self.taint(value)
        if why:
            self.log.tainted_units[self.unit] = why
        start = module.starts[self.lead(node) - 1]
        end = module.starts[node.end_lineno or 0]
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                    mark = self.world.marks.mark(Unit(module.name, part.id), hard=False)
                    self.edits.append((module.start(part), module.end(part), mark))
        if isinstance(node, ast.AnnAssign):
            self.annotation(node.annotation)
        self.expr(value)
        text = edits.applied(module, start, end, self.edits)
        return edits.reindented(text, edits.indentation(module.line(node.lineno)), "")

    def _present(self, node: ast.stmt, live: Any) -> str:
        """A name bound by other means than one assignment: written as what it holds."""
        try:
            return f"{self.world.marks.mark(self.unit, hard=False)} = {self.reified(live)}\n"
        except Exception as error:
            self.problem(node, f"{self.unit.name} is changed after its definition: {error}", getattr(error, "hint", ""))
            return ""

    def _mutated(self, value: ast.expr, live: Any) -> bool:
        if not isinstance(live, (dict, list, set)):
            return False
        try:
            literal = ast.literal_eval(value)
            return not (type(literal) is type(live) and literal == live)
        except Exception:
            pass
        if isinstance(value, ast.Dict) and isinstance(live, dict) and None not in value.keys:
            return len(value.keys) != len(live)
        if isinstance(value, (ast.List, ast.Set)) and not any(isinstance(e, ast.Starred) for e in value.elts):
            return len(value.elts) != len(live)
        return False
