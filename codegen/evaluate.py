"""What an expression is in this configuration, as far as frozen facts tell: partial evaluation of tests and choices.

Facts are fields of configs, constructor arguments that are the same in every call, attributes that are the same in all
instances and never stored outside construction, and names of modules. All else is unknown, and stays as it is.
"""

from __future__ import annotations

import ast
import builtins
import operator
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
import torch.nn as nn

from . import taint
from .attributes import METHODS, OBJECT, Attributes
from .keys import Unit
from .record import SIMPLE
from .walk import Unknown, Use

_OPERATORS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Mod: operator.mod,
    ast.FloorDiv: operator.floordiv, ast.Div: operator.truediv, ast.Pow: operator.pow, ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.Not: lambda v, _: not v, ast.USub: lambda v, _: -v, ast.UAdd: lambda v, _: +v, ast.Invert: lambda v, _: ~v,
}  # fmt: skip
_PURE = (isinstance, issubclass, hasattr, getattr, callable, len, int, float, bool, str, abs, min, max, tuple, any, all)
_PLAIN = (*SIMPLE, type, tuple, list, dict, set, frozenset)


class Evaluator(Attributes):
    """Values of expressions; `used` collects the facts that they rest on."""

    def known(self, node: ast.expr) -> tuple[Any, list[Use]]:
        """(value, facts used) of an expression. Raises `Unknown`."""
        outer = getattr(self, "used", [])
        self.used = []
        try:
            return self.value(node), self.used
        except (RecursionError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError):
            raise Unknown from None
        finally:
            self.used = outer

    def decide(self, test: ast.expr) -> tuple[bool, list[Use]] | None:
        """Whether a test holds, and the facts that say so; None when that is not known."""
        if self.opaque:
            return None
        why = self.taint(test)
        if why:
            if self.context() == "construction":
                self.problem(
                    test,
                    f"{why} decides what is built, and it belongs to this machine rather than to the model",
                    "make it an argument of the constructor",
                )
            return None
        try:
            value, used = self.known(test)
        except Unknown:
            return None
        if value is OBJECT or (not isinstance(value, (*_PLAIN, ModuleType)) and not callable(value)):
            return None
        return bool(value), used

    def value(self, node: ast.expr) -> Any:
        """The value of an expression. Raises `Unknown`, or what the operation raises."""
        method = getattr(self, f"_value_{type(node).__name__.lower()}", None)
        if method is None:
            raise Unknown
        return method(node)

    def plain(self, node: ast.expr) -> Any:
        """The value of an expression that is data, not a module or some object."""
        value = self.value(node)
        if not isinstance(value, _PLAIN):
            raise Unknown
        return value

    def _value_constant(self, node: ast.Constant) -> Any:
        return node.value

    def _value_name(self, node: ast.Name) -> Any:
        scope = self.scope_of(node.id)
        if scope is not None:
            if node.id in scope.known:
                value, used = scope.known[node.id]
                self.used.extend(used)
                return value
            if node.id in scope.imports:
                return self.live_of(scope.imports[node.id])
            raise Unknown
        held = vars(self.module.live)
        if node.id in held:
            if node.id in self.module.rebound or Unit(self.module.name, node.id) in self.before.tainted_units:
                raise Unknown
            return held[node.id]
        if hasattr(builtins, node.id):
            return getattr(builtins, node.id)
        raise Unknown

    def _value_attribute(self, node: ast.Attribute) -> Any:
        function = self.function
        if isinstance(node.value, ast.Name) and function and function.owner and node.value.id == function.self_name:
            return self.attribute(function.owner, node.attr)
        base = self.value(node.value)
        return self.attribute_of(base, node.attr)

    def _value_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self.value(node.operand)
        if isinstance(node.op, ast.Not) and value is not OBJECT and (isinstance(value, _PLAIN) or callable(value)):
            return not value
        return _OPERATORS[type(node.op)](self.plain(node.operand), None)

    def _value_boolop(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for part in node.values:
            value = self.value(part)
            if value is OBJECT:
                raise Unknown
            if bool(value) is isinstance(node.op, ast.Or):
                return value
        return value

    def _value_compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for op, comparator in zip(node.ops, node.comparators):
            right = self.value(comparator)
            if isinstance(op, (ast.Is, ast.IsNot)):
                if OBJECT in (left, right) and None not in (left, right):
                    raise Unknown
                holds = (left is right) == isinstance(op, ast.Is)
            else:
                if not (isinstance(left, _PLAIN) or callable(left)) or not (
                    isinstance(right, _PLAIN) or callable(right)
                ):
                    raise Unknown
                if OBJECT in (left, right) or _sizes(left, right, node.left, comparator):
                    raise Unknown
                holds = bool(_OPERATORS[type(op)](left, right))
            if not holds:
                return False
            left = right
        return True

    def _value_binop(self, node: ast.BinOp) -> Any:
        left, right = self.plain(node.left), self.plain(node.right)
        if type(node.op) not in _OPERATORS or _sizes(left, right, node.left, node.right):
            raise Unknown
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise Unknown
        return _OPERATORS[type(node.op)](left, right)

    def _value_ifexp(self, node: ast.IfExp) -> Any:
        return self.value(node.body if self.plain(node.test) else node.orelse)

    def _value_tuple(self, node: ast.Tuple) -> tuple[Any, ...]:
        return tuple(self.value(x) for x in node.elts)

    def _value_list(self, node: ast.List) -> list[Any]:
        return [self.value(x) for x in node.elts]

    def _value_set(self, node: ast.Set) -> set[Any]:
        return {self.value(x) for x in node.elts}

    def _value_subscript(self, node: ast.Subscript) -> Any:
        base, key = self.value(node.value), self.plain(node.slice)
        if type(base) not in (dict, list, tuple, str) or not isinstance(node.ctx, ast.Load):
            raise Unknown
        return base[key]

    def _value_call(self, node: ast.Call) -> Any:
        if node.keywords or any(isinstance(a, ast.Starred) for a in node.args):
            raise Unknown
        if isinstance(node.func, ast.Attribute) and node.func.attr in METHODS:
            base = self.plain(node.func.value)
            if not isinstance(base, (str, dict)):
                raise Unknown
            return getattr(base, node.func.attr)(*map(self.value, node.args))
        function = self.value(node.func)
        if not any(function is f for f in _PURE):
            raise Unknown
        arguments = [self.value(a) for a in node.args]
        if any(a is OBJECT for a in arguments) or (function is not isinstance and any(_is_live(a) for a in arguments)):
            raise Unknown
        if function in (getattr, hasattr) and isinstance(arguments[0], (ModuleType, *self.world.configs)):
            return self._named(function, arguments)
        if any(isinstance(a, (nn.Module, torch.Tensor)) for a in arguments):
            raise Unknown
        if function in (getattr, hasattr) and not isinstance(arguments[0], _PLAIN):
            raise Unknown
        return function(*arguments)

    def _named(self, function: Any, arguments: list[Any]) -> Any:
        base, name = arguments[0], arguments[1]
        if function is hasattr or not hasattr(base, name):
            if isinstance(base, ModuleType) and taint.of_module(base.__name__):
                raise Unknown
            return function(*arguments)
        return self.attribute_of(base, name)

    # what belongs to the machine

    def callee(self, node: ast.expr) -> Any:
        """The function or class that a call calls, or None."""
        try:
            value, _ = self.known(node)
        except Unknown:
            return None
        return value if callable(value) and value is not OBJECT else None


def _sizes(left: Any, right: Any, *nodes: ast.expr) -> bool:
    """Two numbers, none of them a literal: what follows from them must follow from others as well."""
    literal = any(isinstance(n.operand if isinstance(n, ast.UnaryOp) else n, ast.Constant) for n in nodes)
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (left, right))
    return numbers and not literal


def _is_live(value: Any) -> bool:
    return isinstance(value, (nn.Module, torch.Tensor))
