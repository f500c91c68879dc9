"""Calls that only forward: a function that calls something else with its own parameters gives way to that call."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from typing import Any

from .expressions import Expressions
from .modules import Module
from .record import code_key
from .reify import Unwritable
from .resolve import Unresolved
from .scopes import FUNCTIONS, parameters
from .walk import function_keys


class Forwarding(Expressions):
    """Calls of functions and partials that only forward."""

    def _forward(self, node: ast.Call, function: Any) -> bool:
        """Replace a call of a function that only calls something else with its own parameters."""
        if self.opaque or self.context() != "construction":
            return False
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            return False
        if isinstance(function, functools.partial):
            return self._forward_partial(node, function)
        if not inspect.isfunction(function) or "<lambda>" in function.__qualname__ or "." in function.__qualname__:
            return False
        found = self._forwarding(function)
        values = [*node.args, *(k.value for k in node.keywords)]
        if found is None or not all(isinstance(v, (ast.Name, ast.Attribute, ast.Constant)) for v in values):
            return False
        module, definition, body = found
        try:
            bound = inspect.signature(function).bind(*node.args, **{k.arg or "": k.value for k in node.keywords})
        except TypeError:
            return False
        used = {n.id for n in ast.walk(body) if isinstance(n, ast.Name)}
        texts = {name: self.text_of(value) for name, value in bound.arguments.items() if name in used}
        defaults = dict(zip([p.arg for p in definition.args.args][::-1], definition.args.defaults[::-1]))
        defaults |= {p.arg: d for p, d in zip(definition.args.kwonlyargs, definition.args.kw_defaults) if d}
        for name, default in defaults.items():
            if name in used and name not in texts:
                texts[name] = self.elsewhere(module, default)
        text = self.elsewhere(module, body, texts)
        self.replace(node, _one_line(text) if "#" not in text else text)
        return True

    def _forwarding(self, function: Any) -> tuple[Module, ast.FunctionDef, ast.Call] | None:
        """(module, definition, the call in its only return) of a function that only forwards."""
        key = code_key(function)
        if key is None or not self.world.modules.traced(key.module) or hasattr(function, "__wrapped__"):
            return None
        if function.__name__ in self.world.options.keep or key in self.world.kept:
            return None
        try:
            module = self.world.modules.read(key.module)
        except Unresolved:
            return None
        for statement, _ in module.bindings.get(function.__name__, []):
            if isinstance(statement, ast.FunctionDef) and module.first_line(statement) == key.line:
                body = statement.body[1:] if ast.get_docstring(statement) else statement.body
                plain = not statement.args.vararg and not statement.args.kwarg and not statement.args.posonlyargs
                if len(body) == 1 and isinstance(body[0], ast.Return) and plain and not statement.decorator_list:
                    call = body[0].value
                    if isinstance(call, ast.Call) and _is_forward(call, {p.arg for p in parameters(statement)}):
                        return module, statement, call
        return None

    def _forward_partial(self, node: ast.Call, function: Any) -> bool:
        inner = function.func
        if not (isinstance(inner, type) or inspect.isfunction(inner)):
            return False
        own = {k.arg for k in node.keywords}
        try:
            parts = [self.reified(a) for a in function.args]
            given = [f"{k}={self.reified(v)}" for k, v in function.keywords.items() if k not in own]
            outer, self.role = self.role, "call"
            callee = self.reified(inner)
            self.role = outer
        except (Unwritable, Unresolved):
            return False
        self.called(function_keys(inner))
        self.log.pinned.update(function_keys(inner))
        parts += [self.text_of(a) for a in node.args]
        parts += [f"{k.arg}={self.text_of(k.value)}" for k in node.keywords]
        self.replace(node, f"{callee}({', '.join([*parts, *given])})")
        return True


def _is_forward(call: ast.Call, names: set[str]) -> bool:
    """Whether a call passes parameters, each at most once, names and literals, to something that is no parameter."""
    values = [*call.args, *(k.value for k in call.keywords)]
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return False
    callee = call.func
    while isinstance(callee, ast.Attribute):
        callee = callee.value
    if not isinstance(callee, ast.Name) or callee.id in names:
        return False
    return all(_is_simple(v) for v in values) and not isinstance(callee, FUNCTIONS)


def _one_line(text: str) -> str:
    """A call on one line, to be broken where it lands."""
    text = re.sub(r"\s*\n\s*", " ", text)
    return re.sub(r"([(\[{]) | ?,? (?=[)\]}])", lambda m: m[1] or "", text)


def _is_simple(node: ast.expr) -> bool:
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.operand, ast.Constant)
    if isinstance(node, ast.Attribute):
        return _is_simple(node.value)
    if isinstance(node, (ast.Tuple, ast.List)):
        return all(map(_is_simple, node.elts))
    return isinstance(node, (ast.Name, ast.Constant))
