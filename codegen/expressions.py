"""Expressions: names become marks, decided choices become what they chose, fixed parameters become their values."""

from __future__ import annotations

import ast
import sys

from . import edits
from .keys import Import, Unit
from .modules import Fragment, Module
from .references import References, is_choice, shown
from .scopes import COMPREHENSIONS, bound
from .walk import Scope, Unknown


class Expressions(References):
    """The walk over expressions."""

    # choices

    def _expr_ifexp(self, node: ast.IfExp) -> None:
        found = self.decide(node.test)
        if found is None:
            self.test(node.test)
            self.expr(node.body)
            self.expr(node.orelse)
            return
        self.decided(node.test, str(found[0]), found[1])
        self.replace(node, self.text_of(node.body if found[0] else node.orelse))

    def _truth(self, node: ast.expr) -> None:
        """`not flag` of a flag that is fixed is what it comes to."""
        try:
            value, used = (None, []) if self.opaque or self.role == "type" else self.known(node)
        except Unknown:
            value, used = None, []
        if isinstance(value, bool) and any(k == "parameter" and self.world.removable((o, n)) for k, o, n in used):
            self.decided(node, str(value), used)
            self.replace(node, str(value))
        else:
            self.children(node)

    _expr_unaryop = _expr_compare = _expr_boolop = _truth

    def test(self, node: ast.expr) -> None:
        """A test that stays; of `and` and `or`, operands that change nothing are left out."""
        if not isinstance(node, ast.BoolOp):
            self.expr(node)
            return
        neutral = isinstance(node.op, ast.And)
        floor = self.text.start(node)
        gone: set[int] = set()
        for i, part in enumerate(node.values):
            found = self.decide(part)
            if found is not None and found[0] is neutral:
                gone.add(i)
                self.decided(part, str(found[0]), found[1])
        kept = [i for i in range(len(node.values)) if i not in gone]
        ranges = [edits.whole_range(self.text, part, floor) for part in node.values]
        for i in kept:
            self.expr(node.values[i])
        for i in gone:
            if i > kept[0]:
                self.edits.append((ranges[i - 1][1], ranges[i][1], ""))
        if kept[0] > 0:
            self.edits.append((ranges[0][0], ranges[kept[0]][0], ""))

    def _expr_subscript(self, node: ast.Subscript) -> None:
        if not self._folds(node):
            self.children(node)

    def _folds(self, node: ast.expr) -> bool:
        """`TABLE[key]` and `getattr(module, name)` that give a class or function become its name."""
        if self.opaque or self.role == "type" or not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return False
        try:
            value, used = self.known(node)
        except Unknown:
            return False
        if not is_choice(value) or not self.substitute(node, value):
            return False
        self.decided(node, shown(value), used)
        return True

    # scopes inside expressions

    def _expr_lambda(self, node: ast.Lambda) -> None:
        for default in [*node.args.defaults, *node.args.kw_defaults]:
            self.expr(default)
        outer, self.role = self.role, "value"
        self.scopes.append(Scope("function", bound(node)))
        self.soft += 1
        self.expr(node.body)
        self.soft -= 1
        self.scopes.pop()
        self.role = outer

    def _comprehension(self, node: ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp) -> None:
        outer, self.role = self.role, "value"
        self.expr(node.generators[0].iter)
        self.scopes.append(Scope("expression", bound(node)))
        for i, generator in enumerate(node.generators):
            if i:
                self.expr(generator.iter)
            self.expr(generator.target)
            for test in generator.ifs:
                self.test(test)
        for field in ("key", "value", "elt"):
            self.expr(getattr(node, field, None))
        self.scopes.pop()
        self.role = outer

    _expr_listcomp = _expr_setcomp = _expr_dictcomp = _expr_generatorexp = _comprehension

    # strings

    def _expr_constant(self, node: ast.Constant) -> None:
        if self.role != "type" or not isinstance(node.value, str):
            return
        try:
            fragment = Fragment(self.module, node.value.strip())
        except SyntaxError:
            return
        if len(fragment.tree.body) != 1 or not isinstance(fragment.tree.body[0], ast.Expr):
            return
        outer, changes = self.text, self.edits
        self.text, self.edits = fragment, []
        problems = len(self.log.problems)
        self.expr(fragment.tree.body[0].value)
        text = edits.applied(fragment, 0, len(fragment.data), self.edits)
        self.text, self.edits = outer, changes
        if len(self.log.problems) > problems:  # a name for type checkers that is not there: say as little as it did
            del self.log.problems[problems:]
            text = "object"
        self.edits.append((self.text.start(node), self.text.end(node), text))

    def _expr_joinedstr(self, node: ast.JoinedStr) -> None:
        """Before Python 3.12 places inside f-strings are not to be relied on: then the string is written anew."""
        names = [n for n in ast.walk(node) if isinstance(n, ast.Name)]
        exact = all(self.text.source(n) == n.id for n in names) and not any(
            isinstance(n, COMPREHENSIONS) for n in ast.walk(node)
        )
        if exact or sys.version_info >= (3, 12):
            changes = len(self.edits)
            self.children(node)
            quotes = [e for e in self.edits[changes:] if '"' in e[2] or "'" in e[2] or "\n" in e[2]]
            if not quotes:
                return
            del self.edits[changes:]
        self._formatted_anew(node)

    def _formatted_anew(self, node: ast.JoinedStr) -> None:
        keys = {
            n.id: self.resolve(n.id, n)
            for n in ast.walk(node)
            if isinstance(n, ast.Name) and self.scope_of(n.id) is None
        }
        for n in ast.walk(node):
            if isinstance(n, ast.Name) and (scope := self.scope_of(n.id)) is not None:
                scope.first.setdefault(n.id, "load")
                scope.loads.add(n.id)
                if n.id in scope.texts or any(
                    u[0] == "parameter" and self.world.removable((u[1], u[2]))
                    for u in scope.known.get(n.id, (0, ()))[1]
                ):
                    self.world.stuck.update(u[1] for u in scope.known.get(n.id, (0, ()))[1] if u[0] == "parameter")
        marks = {name: self.mark(key) for name, key in keys.items() if isinstance(key, (Unit, Import))}
        if any(marks):
            copy = ast.parse(ast.unparse(node), mode="eval").body
            for n in ast.walk(copy):
                if isinstance(n, ast.Name):
                    n.id = marks.get(n.id, n.id)
            self.edits.append((self.text.start(node), self.text.end(node), ast.unparse(copy)))

    def elsewhere(self, module: Module, node: ast.expr, texts: dict[str, str] | None = None) -> str:
        """The text of an expression of another module, in names of the file."""
        state = self.module, self.text, self.scopes, self.edits
        around = set().union(*[s.names - s.hidden for s in self.scopes if s.kind != "class"])
        function = self.function if self.context() == "construction" else None
        self.module, self.text, self.edits = module, module, []
        self.scopes = [Scope("function", texts=dict(texts), function=function)] if texts is not None else []
        try:
            text = self.captured(module.start(node), module.end(node), lambda: self.expr(node))
        finally:
            self.module, self.text, self.scopes, self.edits = state
        for key in self.world.marks.keys(text):
            self.forbidden.setdefault(key, set()).update(around)
        return text
