"""Functions and classes: signatures without what is fixed, bodies without what nobody calls, bases without what is empty."""

from __future__ import annotations

import ast
import inspect
import re
import sys
from typing import Any

from . import edits
from .branches import Branches
from .record import VARIES, CodeKey, code_key
from .reify import Unwritable
from .resolve import Unresolved
from .scopes import FUNCTIONS, bound, parameters, stores
from .walk import Function, Scope, Use, class_key

_IMPLICIT = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__parameters__", "__orig_bases__", "__qualname__",
    "__abstractmethods__", "_abc_impl", "__static_attributes__", "__firstlineno__", "__slots__", "__match_args__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__classcell__", "__protocol_attrs__", "_is_protocol",
    "_is_runtime_protocol", "__init__", "__subclasshook__", "__non_callable_proto_members__",
}  # fmt: skip
_CONSTRUCTORS = ("__init__", "__post_init__", "__new__", "__attrs_post_init__")


class Definitions(Branches):
    """The walk over functions and classes."""

    owner: type | None = None  # the class whose body is being walked

    # functions

    def statement_functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[bool, bool]:
        owner = self.owner if self.scopes and self.scopes[-1].kind == "class" else None
        if owner is not None and not self.opaque and not self.keeps(owner, node):
            return True, False
        self.decorators(node)
        arguments = node.args
        for default in [*arguments.defaults, *arguments.kw_defaults]:
            self.expr(default)
        function = self._function(node, owner)
        gone = self._signature_edits(node, function)
        hidden = gone | {name for key, name in self.before.dead_locals if key == function.key}
        for parameter in parameters(node):
            if parameter.arg not in gone:
                self.annotation(parameter.annotation)
        self.annotation(node.returns)
        self._body(node, function, hidden)
        return False, False

    statement_asyncfunctiondef = statement_functiondef

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef, owner: type | None) -> Function:
        key = CodeKey(self.module.name, self.text.first_line(node), node.name)
        top = not self.scopes or owner is not None
        called = self.before.called.get(key, set())
        if owner is not None and node.name in _CONSTRUCTORS:
            where = self.before.called.get(class_key(owner), set()) | called
            construction = "runtime" not in where and key not in self.before.escaped
            construction = construction and key in self.world.record.constants
        else:
            private = owner is None or (node.name.startswith("_") and node.name not in self.before.loose)
            construction = top and private and key in self.world.constructing
        static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
        first = [*node.args.posonlyargs, *node.args.args][:1]
        self_name = first[0].arg if owner is not None and first and not static else None
        if not top and (outer := self.function) is not None:  # a nested function sees the self around it
            owner = outer.owner
            self_name = outer.self_name if outer.self_name not in {p.arg for p in parameters(node)} else None
        return Function(key, node.name, owner, self_name, construction and not self.opaque, self.opaque)

    def _body(self, node: ast.FunctionDef | ast.AsyncFunctionDef, function: Function, hidden: set[str]) -> None:
        count = stores(node)
        scope = Scope("function", bound(node), hidden, function=function)
        self._facts(node, function, scope, count)
        outer = self.single, self.depth, self.trying, self.role
        names = {p.arg for p in parameters(node)}
        self.single = frozenset(n for n, c in count.items() if c == 1 and n not in names)
        self.depth = self.trying = 0
        self.role = "value"
        self.scopes.append(scope)
        self.soft += 1
        documented = ast.get_docstring(node) is not None
        body = node.body[1:] if documented else node.body
        gone = self.block(body)[0] if body else False
        if gone and body and not documented:
            self.filled(body, gone)
        self.soft -= 1
        self.scopes.pop()
        self.single, self.depth, self.trying, self.role = outer
        self._uses(node, function, scope)
        if gone and body or (documented and not body):
            self.log.empty.add(function.key) if function.construction else None

    def _facts(self, node: ast.AST, function: Function, scope: Scope, count: dict[str, int]) -> None:
        """What is known of the parameters."""
        if not function.construction:
            return
        for name, value in self.world.record.constants.get(function.key, {}).items():
            if why := self.before.tainted_parameters.get((function.key, name)):
                scope.tainted[name] = why
            elif value is not VARIES and name not in count and name != function.self_name and not name.startswith("*"):
                use: Use = ("parameter", function.key, name)
                scope.known[name] = (value, () if type(value) in self.world.configs else (use,))

    def _uses(self, node: ast.FunctionDef | ast.AsyncFunctionDef, function: Function, scope: Scope) -> None:
        """Parameters and locals that nothing reads any more, though the source did."""
        if self.opaque:
            return
        loaded = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        names = {p.arg for p in parameters(node)}
        for name in names:
            unread = name not in scope.loads or scope.first.get(name) == "store"
            if function.construction and unread and name in loaded and name != function.self_name:
                self.log.dead.add((function.key, name))
        for name in scope.names - names:
            if name in loaded and name not in scope.loads:
                self.log.dead_locals.add((function.key, name))

    def _signature_edits(self, node: ast.FunctionDef | ast.AsyncFunctionDef, function: Function) -> set[str]:
        """Take the parameters that are fixed or dead out of the signature."""
        a = node.args
        listed = [*a.posonlyargs, *a.args, *a.kwonlyargs]
        gone = {p.arg for p in listed if function.construction and self.world.removable((function.key, p.arg))}
        if not gone:
            return gone
        ranges, leaving = self._parameter_ranges(node, gone)
        self.edits = [e for e in self.edits if not any(ranges[i][0] <= e[0] < ranges[i][1] for i in leaving)]
        self.edits += edits.without(self.text, ranges, leaving, self._closing(node))
        return gone

    def _parameter_ranges(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef, gone: set[str]
    ) -> tuple[list[tuple[int, int]], set[int]]:
        """(ranges of the parameters with `/` and `*`, which of them leave)."""
        a = node.args
        defaults: dict[str, ast.expr] = dict(zip([p.arg for p in [*a.posonlyargs, *a.args]][::-1], a.defaults[::-1]))
        defaults |= {p.arg: d for p, d in zip(a.kwonlyargs, a.kw_defaults) if d}
        ranges: list[tuple[int, int]] = []
        leaving: set[int] = set()

        def add(start: int, end: int, leaves: bool) -> None:
            if leaves:
                leaving.add(len(ranges))
            ranges.append((start, end))

        def marker(sign: bytes, leaves: bool) -> None:
            data = bytes(self.text.data)
            at = data.index(sign, ranges[-1][1] if ranges else self._opening_of(node) + 1)
            add(at, at + 1, leaves)

        for parameter in parameters(node):
            if parameter in a.kwonlyargs[:1] and not a.vararg:
                marker(b"*", all(p.arg in gone for p in a.kwonlyargs))
            stars = 1 if parameter is a.vararg else 2 if parameter is a.kwarg else 0
            end = self.text.end(parameter)
            if parameter.arg in defaults:
                end = edits.whole_range(self.text, defaults[parameter.arg], end)[1]
            start = self.text.start(parameter)
            if stars:
                start = bytes(self.text.data[:start]).rindex(b"*") - stars + 1
            add(start, end, parameter.arg in gone)
            if parameter in a.posonlyargs[-1:]:
                marker(b"/", all(p.arg in gone for p in a.posonlyargs))
        return ranges, leaving

    def _opening_of(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        at = self.text.start(node)
        while self.text.data[at : at + 1] != b"(":
            at += 1
        return at

    def _closing(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
        """The offset of the parenthesis that closes a signature."""
        limit = self.text.start(node.returns) if node.returns else self.text.start(node.body[0])
        return bytes(self.text.data[:limit]).rindex(b")")

    # classes

    def keeps(self, owner: type, node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
        """Whether a method stays: it is read, it overrides what the file does not hold, or it toggles what is read."""
        name = node.name
        if (
            (name.startswith("__") and name.endswith("__"))
            or name in self.world.options.keep
            or name in self.before.reads
        ):
            return True
        if any(hasattr(base, name) for base in owner.__mro__ if not self.world.modules.traced(base.__module__)):
            return True
        if any(isinstance(d, ast.Attribute) and d.attr in ("setter", "deleter") for d in node.decorator_list):
            return name in self.before.written
        if name.startswith("_"):
            return False
        stored = self.world.writers.get((f"{owner.__module__}.{owner.__qualname__}", name), set())
        return bool(stored & self.before.reads)

    def unread(self, name: str) -> bool:
        """Whether nothing that is retained reads a constant of the class that is being walked."""
        cls = self.owner
        if cls is None or type(cls) is not type or name in self.before.reads or name in self.world.dynamic_names:
            return False
        special = hasattr(cls, "__annotations__") and any(
            hasattr(cls, a) for a in ("__dataclass_fields__", "__attrs_attrs__", "_fields")
        )
        outside = any(hasattr(base, name) for base in cls.__mro__ if not self.world.modules.traced(base.__module__))
        return (
            not special
            and not outside
            and not (name.startswith("__") and name.endswith("__"))
            and self.world.settled > 2
        )

    def statement_classdef(self, node: ast.ClassDef) -> tuple[bool, bool]:
        outer_owner, outer_opaque = self.owner, self.opaque
        cls = self._live_class(node)
        self.opaque = self.opaque or self.world.is_opaque(self.module.name, cls.__qualname__ if cls else node.name)
        self.decorators(node)
        self._bases(node, cls)
        for keyword in node.keywords:
            self.expr(keyword.value)
        self.owner = cls
        self.scopes.append(Scope("class", _class_names(node)))
        documented = ast.get_docstring(node) is not None
        body = node.body[1:] if documented else node.body
        gone = self.block(body)[0] if body else False
        if gone and not documented:
            self.filled(body, gone)
        self.scopes.pop()
        self.owner, self.opaque = outer_owner, outer_opaque
        return False, False

    def _live_class(self, node: ast.ClassDef) -> type | None:
        """The class that a statement made; None inside functions."""
        if not self.scopes:
            found = vars(self.module.live).get(node.name)
        elif self.scopes[-1].kind == "class" and self.owner is not None:
            found = self.owner.__dict__.get(node.name)
        else:
            found = None
        return found if isinstance(found, type) else None

    def _bases(self, node: ast.ClassDef, cls: type | None) -> None:
        gone: set[int] = set()
        for i, base in enumerate(node.bases):
            value = self.callee(base)
            if isinstance(value, type) and cls is not None and not self.opaque and self.emptied(value):
                while self.emptied(value):
                    value = value.__bases__[0]
                if value is object or any(issubclass(b, value) for b in cls.__bases__ if not self.emptied(b)):
                    gone.add(i)
                    continue
                try:
                    self.replace(base, self.reified(value))
                    continue
                except (Unwritable, Unresolved):
                    pass
            self.in_role("type", base)
        if gone and len(gone) == len(node.bases) and not node.keywords:
            at = bytes(self.text.data[: self.text.start(node.bases[0])]).rindex(b"(")
            self.edits.append((at, self.text.data.index(b")", self.text.end(node.bases[-1])) + 1, ""))
        elif gone:
            items = [(self.text.start(b), self.text.end(b)) for b in [*node.bases, *(k.value for k in node.keywords)]]
            self.edits += edits.without(self.text, items, gone, items[-1][1])

    def emptied(self, cls: type) -> bool:
        """Whether nothing of a base class would be left, so that its own base can stand for it."""
        if not self.world.modules.traced(cls.__module__) or len(cls.__bases__) != 1 or type(cls) is not type:
            return False
        if any(u.module == cls.__module__ and u.name == cls.__qualname__ for u in self.before.tested):
            return False
        try:
            module = self.world.modules.read(cls.__module__)
        except Unresolved:
            return False
        found = [s for s, _ in module.bindings.get(cls.__qualname__, []) if isinstance(s, ast.ClassDef)]
        if len(found) != 1 or found[0].keywords or self.world.is_opaque(cls.__module__, cls.__qualname__):
            return False
        return all(self._vanishes(cls, s) for s in found[0].body)

    def _vanishes(self, cls: type, node: ast.stmt) -> bool:
        if isinstance(node, ast.FunctionDef):
            return not self.keeps(cls, node)
        return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))

    # decorators

    def decorators(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        """Decorators that gave back what they got, such as those that only register, go."""
        for decorator in node.decorator_list:
            if not self.scopes and not self.opaque and self._registers(node, decorator):
                start = self.text.starts[decorator.lineno - 1]
                self.edits.append((start, self.text.starts[decorator.end_lineno or 0], ""))
                continue
            self.in_role("call", decorator)

    def _registers(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, decorator: ast.expr) -> bool:
        root = decorator.func if isinstance(decorator, ast.Call) else decorator
        maker = self.callee(root)
        if maker is None or not self.world.modules.traced(getattr(maker, "__module__", None) or ""):
            return False
        live = vars(self.module.live).get(node.name)
        if isinstance(live, type) and isinstance(node, ast.ClassDef):
            extra = set(vars(live)) - _class_names(node) - _IMPLICIT
            return (
                (live.__module__, live.__qualname__) == (self.module.name, node.name)
                and not extra
                and not _foreign(live)
            )
        if not inspect.isfunction(live) or hasattr(live, "__wrapped__"):
            return False
        return code_key(live) == CodeKey(self.module.name, self.text.first_line(node), node.name)

    # whole units

    def rename(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        """The mark of a unit where its name stands."""
        start = self.text.start(node)
        head = bytes(self.text.data[start : self.text.end(node)])
        found = re.search(rb"(?:def|class)\s+(" + re.escape(node.name.encode()) + rb")\b", head)
        assert found is not None
        self.edits.append((start + found.start(1), start + found.end(1), self.world.marks.mark(self.unit, hard=False)))


def _class_names(node: ast.ClassDef) -> set[str]:
    found: set[str] = set()
    for statement in ast.walk(node):
        if isinstance(statement, (*FUNCTIONS, ast.ClassDef)) and statement is not node:
            found.add(statement.name)
    for statement in node.body:
        for n in ast.walk(statement) if not isinstance(statement, (*FUNCTIONS, ast.ClassDef)) else ():
            if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
                found.add(n.id)
    return found


def _foreign(cls: type) -> Any:
    """A method of a class that some other code put there."""
    for value in vars(cls).values():
        if inspect.isfunction(value) and not value.__qualname__.startswith(f"{cls.__qualname__}."):
            return value
    return None


__all__ = ["Definitions", "sys"]
