"""Functions: signatures without what is fixed or unread, bodies in which the facts of construction are known."""

from __future__ import annotations

import ast

from . import edits
from .decorators import Decorators
from .record import VARIES, CodeKey
from .scopes import bound, parameters, stores
from .walk import Function, Scope, Use, class_key

_CONSTRUCTORS = ("__init__", "__post_init__", "__new__", "__attrs_post_init__")


class Functions(Decorators):
    """The walk over functions."""

    def _statement_functiondef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[bool, bool]:
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

    _statement_asyncfunctiondef = _statement_functiondef

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
        if function.construction and ((gone and body) or (documented and not body)):
            self.log.empty.add(function.key)
            last = node.end_lineno or 0
            self.world.passed[function.key] = {
                c for c in self.log.checks if c[0] == self.module.name and node.lineno <= c[1] <= last
            }

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
