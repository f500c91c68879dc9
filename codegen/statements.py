"""Statements: decided branches are taken, passed checks and dead stores go, the rest is walked where it stands."""

from __future__ import annotations

import ast
from typing import Any

import torch
import torch.nn as nn

from . import edits
from .calls import Calls
from .evaluate import Unknown
from .keys import Builtin, Package
from .record import SIMPLE
from .resolve import Unresolved
from .scopes import is_plain
from .walk import Function

_STOPS = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class Statements(Calls):
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
        method = getattr(self, f"statement_{type(node).__name__.lower()}", None)
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

    def statement_expr(self, node: ast.Expr) -> tuple[bool, bool]:
        if isinstance(node.value, ast.Constant):
            return False, False
        if isinstance(node.value, ast.Call) and not self.opaque:
            function, _ = self._target(node.value.func)
            parts = [*node.value.args, *(k.value for k in node.value.keywords)]
            from .record import code_key

            key = code_key(function) if callable(function) and not isinstance(function, type) else None
            if key in self.before.empty and key in self.world.constructing and all(map(is_plain, parts)):
                self.log.empty.add(key)
                self.called([key])
                return True, False
        self.expr(node.value)
        return False, False

    def statement_global(self, node: ast.Global) -> tuple[bool, bool]:
        self.problem(
            node,
            f"global {', '.join(node.names)}: what a module counts or collects while it runs cannot be traced",
            "keep it in an object that is passed along",
        )
        return False, False

    def statement_assign(self, node: ast.Assign) -> tuple[bool, bool]:
        if all(self._dead_store(t, node.value) for t in node.targets):
            return True, False
        self._note_store(node.targets, node.value)
        self.expr(node.value)
        for target in node.targets:
            self._target_of_store(target)
        return False, False

    def statement_annassign(self, node: ast.AnnAssign) -> tuple[bool, bool]:
        if node.value is not None and self._dead_store(node.target, node.value):
            return True, False
        if node.value is not None:
            self._note_store([node.target], node.value)
        self.annotation(node.annotation)
        self.expr(node.value)
        if node.value is not None:
            self._target_of_store(node.target)
        return False, False

    def statement_augassign(self, node: ast.AugAssign) -> tuple[bool, bool]:
        self.expr(node.value)
        if isinstance(node.target, ast.Name) and (scope := self.scope_of(node.target.id)):
            scope.loads.add(node.target.id)
        elif isinstance(node.target, ast.Attribute):
            self.log.reads.add(node.target.attr)
        self.expr(node.target)
        return False, False

    def _target_of_store(self, target: ast.expr) -> None:
        """What is stored for sure, at the top of a function, is not what a parameter held."""
        scope = self.scopes[-1] if self.scopes else None
        if isinstance(target, ast.Name) and scope is not None and scope.kind == "function" and self.depth == 0:
            scope.first.setdefault(target.id, "store")
        self.expr(target)

    depth = 0  # of blocks within the function

    def _dead_store(self, target: ast.expr, value: ast.expr) -> bool:
        """A store that nothing reads any more, of a value without effects."""
        while isinstance(value, ast.IfExp) and (found := self.decide(value.test)) is not None:
            value = value.body if found[0] else value.orelse
        if self.opaque or not is_plain(value):
            return False
        if self.scopes and self.scopes[-1].kind == "class":
            return isinstance(target, ast.Name) and self.unread(target.id)
        function = self.function
        if isinstance(target, ast.Name) and function is not None and self.scopes[-1].kind == "function":
            local = (function.key, target.id)
            return local in self.before.dead_locals and local not in self.world.staying
        mine = isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and function is not None
        if (
            not mine
            or function is None
            or not isinstance(target, ast.Attribute)
            or not isinstance(target.value, ast.Name)
        ):
            return False
        if target.value.id != function.self_name or function.owner is None or not function.construction:
            return False
        if target.attr not in self.world.dead_attributes:
            return False
        held = [self.held(i, target.attr) for i in self.world.instances.get(function.owner, ())]
        return not any(isinstance(v, (nn.Module, torch.Tensor)) for v in held)

    def unread(self, name: str) -> bool:
        """Whether nothing that is retained reads a constant of the class that is being walked."""
        raise NotImplementedError

    def held(self, instance: Any, name: str) -> Any:
        """An attribute of an instance without properties."""
        for store in ("__dict__", "_parameters", "_buffers", "_modules"):
            if name in getattr(instance, store, {}):
                return getattr(instance, store)[name]
        return None

    def _note_store(self, targets: list[ast.expr], value: ast.expr) -> None:
        """Local names with frozen values; values that belong to the machine; what decided attributes rest on."""
        function = self.function
        why = self.taint(value)
        for target in targets:
            if isinstance(target, ast.Name) and self.scopes and self.scopes[-1].kind == "function":
                scope = self.scopes[-1]
                if why:
                    scope.tainted[target.id] = why
                elif target.id in self.single:
                    try:
                        found, used = self.known(value)
                    except Unknown:
                        continue
                    if isinstance(found, (*SIMPLE, type)) or type(found) in self.world.configs or callable(found):
                        scope.known[target.id] = (found, tuple(used))
            elif isinstance(target, ast.Attribute) and function is not None and isinstance(target.value, ast.Name):
                if target.value.id == function.self_name:
                    self._note_attribute(target, value, function, why)

    single: frozenset[str] = frozenset()  # local names that are stored once

    def _note_attribute(self, target: ast.Attribute, value: ast.expr, function: Function, why: str | None) -> None:
        if why:
            held = [self.held(i, target.attr) for i in self.world.instances.get(function.owner or type(None), ())]
            self.log.tainted_attributes[target.attr] = why
            if function.construction and not any(isinstance(v, (nn.Module, torch.Tensor)) for v in held):
                self.problem(
                    target,
                    f"self.{target.attr} holds {why}, which belongs to this machine rather than to the model",
                    "make it an argument of the constructor, or ask for it in forward",
                )
        owner = function.owner
        if owner is None or not function.construction:
            return
        if any(
            name == target.attr and (issubclass(owner, c) or issubclass(c, owner)) for c, name in self.before.folded
        ):
            self._fixes(value, fixed=True)

    def statement_assert(self, node: ast.Assert) -> tuple[bool, bool]:
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

    def statement_import(self, node: ast.Import) -> tuple[bool, bool]:
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
        import importlib

        live = importlib.import_module(alias.name if alias.asname else alias.name.split(".")[0])
        self.scopes[-1].known[alias.asname or alias.name.split(".")[0]] = (live, ())

    def statement_importfrom(self, node: ast.ImportFrom) -> tuple[bool, bool]:
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
                import sys

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
        import importlib

        live = getattr(importlib.import_module(source), alias.name, None)
        if live is not None:
            self.scopes[-1].known[alias.asname or alias.name] = (live, ())
