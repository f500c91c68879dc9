"""Statements: decided branches are taken, passed checks and dead stores go, the rest is walked where it stands."""

from __future__ import annotations

import ast
import importlib
import sys

from . import edits
from .keys import Builtin, Package
from .record import code_key
from .resolve import Unresolved
from .scopes import is_plain
from .stores import Stores

_STOPS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class Statements(Stores):
    """The walk over statements. Every statement says whether it is gone and whether control never passes it."""

    trying = 0  # depth of try blocks, in which a check may be meant to fail

    def block(self, body: list[ast.stmt]) -> tuple[bool, bool]:
        """Walk the statements of a block: (all gone, control never passes its end)."""
        gone: list[bool] = []
        stops = False
        at = 0
        while at < len(body):
            group = [body[at]]
            while at + len(group) < len(body) and body[at + len(group)].lineno == group[-1].end_lineno:
                group.append(body[at + len(group)])
            at += len(group)
            if len(group) > 1:
                vanished, stops = self._line(group, stops)
            elif stops:
                vanished = True
                self.cut(group[0])
            else:
                vanished, stops = self._one(group[0])
            gone.append(vanished)
        return all(gone), stops

    def _one(self, statement: ast.stmt) -> tuple[bool, bool]:
        before = len(self.edits)
        loads = [set(scope.loads) for scope in self.scopes]
        gone, stops = self.statement(statement)
        if gone:
            del self.edits[before:]
            for scope, held in zip(self.scopes, loads):
                scope.loads = held
            self.cut(statement)
        return gone, stops

    def _line(self, group: list[ast.stmt], stops: bool) -> tuple[bool, bool]:
        """Statements that share a line."""
        kept: list[str] = []
        for statement in group:
            if stops:
                continue
            gone = [False, False]

            def walk(one: ast.stmt = statement, found: list[bool] = gone) -> None:
                found[:] = self.statement(one)

            text = self.captured(self.text.start(statement), self.text.end(statement), walk)
            stops = gone[1]
            if not gone[0]:
                kept.append(text)
        start, end = self.text.start(group[0]), self.text.end(group[-1])
        if kept or self.inline(group[0]):
            self.edits.append((start, end, "; ".join(kept) or "pass"))
            return not kept, stops
        first, last = self.text.starts[group[0].lineno - 1], self.text.starts[group[-1].end_lineno or 0]
        self.edits.append((first, last, ""))
        return True, stops

    def inline(self, statement: ast.stmt) -> bool:
        """Whether a statement stands on the line of what contains it."""
        line = self.text.starts[statement.lineno - 1]
        return bool(self.text.data[line : self.text.start(statement)].strip()) and not getattr(
            statement, "decorator_list", None
        )

    def lead(self, node: ast.stmt) -> int:
        """The first of the comment lines directly above a statement, or its own first line."""
        line = self.text.first_line(node)
        indent = edits.indentation(self.text.line(line))
        while line > 1 and self.text.line(line - 1).startswith(f"{indent}#"):
            line -= 1
        return line

    def cut(self, statement: ast.stmt) -> None:
        """Remove a statement with its comments; one that shares its line with a header becomes `pass`."""
        if self.inline(statement):
            self.edits.append((self.text.start(statement), self.text.end(statement), "pass"))
            return
        first, last = self.text.starts[self.lead(statement) - 1], self.text.starts[statement.end_lineno or 0]
        self.edits.append((first, last, ""))

    def filled(self, body: list[ast.stmt], gone: bool) -> None:
        """Leave `pass` in a block that became empty."""
        if gone and not self.inline(body[0]):
            indent = edits.indentation(self.text.line(self.text.first_line(body[0])))
            end = self.text.starts[body[-1].end_lineno or 0]
            self.edits.append((end, end, f"{indent}pass\n"))

    def statement(self, node: ast.stmt) -> tuple[bool, bool]:
        """Walk one statement: (it is gone, control never passes it)."""
        method = getattr(self, f"_statement_{type(node).__name__.lower()}", None)
        if method is not None:
            return method(node)
        self.expr_parts(node)
        return False, isinstance(node, _STOPS)

    def expr_parts(self, node: ast.stmt) -> None:
        """Walk the expressions and the blocks of any other statement."""
        for _, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                self.expr(value)
            elif isinstance(value, list) and value and isinstance(value[0], ast.stmt):
                self.filled(value, self.block(value)[0])
            elif isinstance(value, list):
                for item in value:
                    if isinstance(item, ast.AST):
                        self.expr(item)

    # simple statements

    def _statement_expr(self, node: ast.Expr) -> tuple[bool, bool]:
        if isinstance(node.value, ast.Constant):
            return False, False
        if isinstance(node.value, ast.Call) and not self.opaque:
            function, _ = self._target(node.value.func)
            parts = [*node.value.args, *(k.value for k in node.value.keywords)]
            key = code_key(function) if callable(function) and not isinstance(function, type) else None
            if (
                key is not None
                and key in self.before.empty
                and key in self.world.constructing
                and all(map(is_plain, parts))
            ):
                self.log.empty.add(key)
                self.log.checks |= self.world.passed.get(key, set())
                self.called([key])
                return True, False
        self.expr(node.value)
        return False, False

    def _statement_global(self, node: ast.Global) -> tuple[bool, bool]:
        self.problem(
            node,
            f"global {', '.join(node.names)}: what a module counts or collects while it runs cannot be traced",
            "keep it in an object that is passed along",
        )
        return False, False

    def _statement_assert(self, node: ast.Assert) -> tuple[bool, bool]:
        if self._passed(node.test):
            self.log.checks.add((self.module.name, node.lineno))
            return True, False
        self.expr(node.test)
        self.expr(node.msg)
        return False, False

    def _passed(self, test: ast.expr) -> bool:
        """Whether a check without effects was passed by every construction, so that it can go."""
        function = self.function
        if self.opaque or self.trying or self.context() != "construction" or function is None or not is_plain(test):
            return False
        return function.key in self.world.record.constants and self.taint(test) is None

    # imports inside functions

    def _statement_import(self, node: ast.Import) -> tuple[bool, bool]:
        gone = True
        for alias in node.names:
            try:
                if self.world.modules.traced(alias.name):
                    self.scopes[-1].imports[alias.asname or alias.name.split(".")[0]] = Package(
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
                    self.scopes[-1].names.discard(alias.asname or alias.name.split(".")[0])
                    continue
                self.world.modules.outside(alias.name)
                gone = False
                self._local_module(alias)
            except Unresolved as error:
                gone = False
                self.problem(node, str(error), error.hint)
        return gone, False

    def _local_module(self, alias: ast.alias) -> None:
        live = importlib.import_module(alias.name if alias.asname else alias.name.split(".")[0])
        self.scopes[-1].known[alias.asname or alias.name.split(".")[0]] = (live, ())

    def _statement_importfrom(self, node: ast.ImportFrom) -> tuple[bool, bool]:
        source = self.module.origin(node)
        if not self.world.modules.traced(source):
            try:
                for alias in node.names:
                    self.world.modules.outside(source, alias.name)
                    self._local_name(source, alias)
            except Unresolved as error:
                self.problem(node, str(error), error.hint)
            return False, False
        for alias in node.names:
            name = alias.asname or alias.name
            try:
                found = self.world.modules.resolve(self.world.modules.read(source), alias.name)
            except Unresolved as error:
                if f"{source}.{alias.name}" in sys.modules:
                    found = Package(f"{source}.{alias.name}")
                else:
                    self.problem(node, str(error), error.hint)
                    continue
            if not isinstance(found, Builtin):
                self.scopes[-1].imports[name] = found
                self.scopes[-1].names.discard(name)
        return True, False

    def _local_name(self, source: str, alias: ast.alias) -> None:
        live = getattr(importlib.import_module(source), alias.name, None)
        if live is not None:
            self.scopes[-1].known[alias.asname or alias.name] = (live, ())
