"""Calls: arguments of parameters that left a signature go, and calls that only forward become the call they forward to."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
from typing import Any

from . import edits
from .forwarding import Forwarding
from .keys import Unit
from .record import CodeKey, code_key
from .scopes import is_plain
from .walk import Unknown, function_keys

_TYPE_TESTS = {"isinstance", "issubclass"}


class Calls(Forwarding):
    """The walk over calls."""

    def _expr_call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) and self.scope_of(node.func.id) is None else ""
        if name in ("getattr", "setattr", "hasattr", "delattr") and len(node.args) > 1:
            if self._folds(node) or self._by_name(node, name):
                return
        elif name in _TYPE_TESTS and len(node.args) == 2:
            self.expr(node.func)
            self.expr(node.args[0])
            self.in_role("type", node.args[1])
            for part in ast.walk(node.args[1]):
                if isinstance(part, (ast.Name, ast.Attribute)) and isinstance(value := self.callee(part), type):
                    self.log.tested.add(Unit(value.__module__, value.__qualname__))
            return
        elif name == "super":
            for argument in node.args:
                self.in_role("type", argument)
            return
        if self.role == "type":
            self.children(node)
            return
        function, skip = self._target(node.func)
        if function is None and self._own_class(node.func):
            owner = self.function.owner if self.function else None
            for cls in {type(i) for i in self.world.instances.get(owner or object, ())}:
                self.log.pinned.update(function_keys(cls))
        if function is not None and self._forward(node, function):
            return
        keys = [code_key(function)] if inspect.isroutine(function) else function_keys(function) if function else []
        self.called(keys)
        self._parameters_taint(node, function, skip)
        self.in_role("call", node.func)
        self._arguments(node, function, skip)

    def _own_class(self, node: ast.expr) -> bool:
        """`type(self)`, `self.__class__` and the `cls` of a class method: one of the classes of this method."""
        function = self.function
        if function is None or function.owner is None:
            return False
        made = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "type"
        mine = isinstance(node, ast.Name) and node.id == function.self_name
        return made or mine or (isinstance(node, ast.Attribute) and node.attr == "__class__")

    def _by_name(self, node: ast.Call, name: str) -> bool:
        """getattr and its kin, by a name that must be known; True when all is done."""
        argument = node.args[1]
        try:
            value, used = self.known(argument)
        except Unknown:
            value, used = None, []
        if not isinstance(value, str):
            base = self._module_behind(node.args[0])
            outside = base is not None and not self.world.modules.traced(base.__name__)
            if not (name in ("getattr", "hasattr") and (self.opaque or outside)):
                self.problem(
                    node,
                    f"{name} with a computed name makes the needed names undecidable",
                    "use a dict, or write the attribute",
                )
            return False
        self.log.reads.add(value)
        self.log.open_reads.add(value)
        self.log.loose.add(value)
        if name == "setattr":
            self.log.written.add(value)
        if (
            name == "getattr"
            and len(node.args) == 2
            and not isinstance(argument, ast.Constant)
            and value.isidentifier()
        ):
            base = self.text_of(node.args[0])
            self.decided(argument, repr(value), used)
            self.replace(node, f"{base if edits.is_atom(base) else f'({base})'}.{value}")
            return True
        return False

    # what is called

    def _target(self, node: ast.expr) -> tuple[Any, int]:
        """(function or class that a call calls, parameters that are bound already), or (None, 0)."""
        if isinstance(node, ast.Attribute):
            found = self._method(node)
            if found is not None:
                return found
        callee = self.callee(node)
        if callee is None:
            return None, 0
        if isinstance(callee, type):
            return callee, 1
        if isinstance(callee, functools.partial) or inspect.isfunction(inspect.unwrap(callee)):
            return callee, 0
        return None, 0

    def _method(self, node: ast.Attribute) -> tuple[Any, int] | None:
        """`super().method` and `self.method`, when it is the same function for every instance."""
        function = self.function
        owner = function.owner if function else None
        if owner is None or function is None:
            return None
        base = node.value
        is_super = isinstance(base, ast.Call) and isinstance(base.func, ast.Name) and base.func.id == "super"
        if not is_super and not (isinstance(base, ast.Name) and base.id == function.self_name):
            return None
        classes = {type(i) for i in self.world.instances.get(owner, ())} or {owner}
        found = set()
        for cls in classes:
            mro = cls.__mro__[cls.__mro__.index(owner) + 1 :] if is_super else cls.__mro__
            found.add(next((c.__dict__[node.attr] for c in mro if node.attr in c.__dict__), None))
        if len(found) != 1:
            for candidate in found:
                self.log.pinned.update(k for k in [code_key(candidate)] if k) if inspect.isfunction(candidate) else None
            return None
        method = found.pop()
        return (method, 1) if inspect.isfunction(method) else None

    def _signature(self, function: Any, skip: int) -> tuple[CodeKey | None, list[inspect.Parameter]]:
        """The key of the code that takes the arguments, and its parameters that are not bound yet."""
        target = function.__init__ if isinstance(function, type) else function
        key = code_key(target) if inspect.isfunction(target) else None
        if key is None or not self.world.modules.traced(key.module):
            return None, []
        try:
            found = list(inspect.signature(target).parameters.values())[skip:]
        except (TypeError, ValueError):
            return None, []
        return key, found

    def _parameters_taint(self, node: ast.Call, function: Any, skip: int) -> None:
        if function is None or isinstance(function, functools.partial):
            return
        key, found = self._signature(function, skip)
        if key is None:
            return
        positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        for name, value in [*zip(positional, node.args), *((k.arg, k.value) for k in node.keywords if k.arg)]:
            if why := self.taint(value):
                self.log.tainted_parameters[key, name] = why

    # arguments

    def _arguments(self, node: ast.Call, function: Any, skip: int) -> None:
        key, found = (
            (None, [])
            if function is None or isinstance(function, functools.partial)
            else self._signature(function, skip)
        )
        items: list[ast.expr | ast.keyword] = sorted(
            [*node.args, *node.keywords], key=lambda a: (a.lineno, a.col_offset)
        )
        gone: set[int] = set()
        if key is not None:
            gone = self._leaving(node, key, found, items)
        for i, item in enumerate(items):
            if key is None:
                self._handed_on(item.value if isinstance(item, (ast.keyword, ast.Starred)) else item)
            if i not in gone:
                outer, self.role = self.role, "value"
                self.expr(item.value if isinstance(item, ast.keyword) else item)
                self.role = outer
        if gone:
            end = self.text.end(node) - 1
            floor = self._opening(node) + 1
            ranges = [edits.whole_range(self.text, item, floor) for item in items]
            self.edits += edits.without(self.text, ranges, gone, end)

    def _handed_on(self, node: ast.expr) -> None:
        """A config that other code gets keeps all its fields."""
        try:
            value, _ = self.known(node)
        except Unknown:
            return
        if type(value) in self.world.configs:
            self.log.whole.add(type(value))

    def _opening(self, node: ast.Call) -> int:
        """The offset of a call's own opening parenthesis."""
        at = self.text.end(node.func)
        while self.text.data[at : at + 1] != b"(":
            at += 1
        return at

    def _leaving(
        self, node: ast.Call, key: CodeKey, found: list[inspect.Parameter], items: list[ast.expr | ast.keyword]
    ) -> set[int]:
        """Which arguments go, because their parameters went; pins the function where that cannot be done."""
        leaving = {p.name for p in found if self.world.removable((key, p.name))}
        wanted = {p.name for p in found if (key, p.name) in self.before.fixed or (key, p.name) in self.before.dead}
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            if wanted:
                self.log.pinned.add(key)
            return set()
        positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        gone: set[int] = set()
        for i, item in enumerate(items):
            if isinstance(item, ast.keyword):
                name, value = item.arg, item.value
            else:
                at = node.args.index(item)
                name, value = positional[at] if at < len(positional) else None, item
            if name not in wanted:
                continue
            if not is_plain(value):
                self.log.pinned.add(key)
                continue
            self._fixes(value, (key, name or "") in self.before.fixed)
            if name in leaving:
                gone.add(i)
        return gone

    def _fixes(self, value: ast.expr, fixed: bool) -> None:
        """What a fixed argument was computed from is fixed as well."""
        if not fixed:
            return
        if isinstance(value, ast.IfExp) and (found := self.decide(value.test)) is not None:
            self._fixes(value.body if found[0] else value.orelse, fixed)
            return
        for part in ast.walk(value):
            if isinstance(part, (ast.Name, ast.Attribute)) and isinstance(part.ctx, ast.Load):
                with contextlib.suppress(Unknown):
                    self.fix(self.known(part)[1])
