"""Expressions: names become marks, decided choices become what they chose, fixed parameters become their values."""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import sys
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from . import edits
from .evaluate import Unknown
from .keys import Builtin, Import, Key, Package, Unit
from .modules import Fragment, Module
from .reify import Reifier, Unwritable
from .resolve import Unresolved
from .scopes import COMPREHENSIONS, bound
from .source import Decision
from .walk import Scope, Use

_UNDECIDABLE = ("eval", "exec", "globals", "locals", "vars", "__import__", "compile", "__builtins__")


_OPS = ("aten", "prims", "prim", "torch", "quantized", "_c10d_functional", "c10d", "higher_order")


class Expressions(Reifier):
    """The walk over expressions."""

    role = "value"  # what a reference is used for: "value", "call" or "type"

    def decided(self, node: ast.AST, outcome: str, used: list[Use]) -> None:
        """Note a choice that the file no longer has; what it rests on is fixed."""
        for kind, owner, name in used:
            if kind == "parameter":
                self.log.fixed.add((owner, name))
            elif kind == "field":
                self.log.fixed_fields.add((owner, name))
            else:
                self.log.folded.add((owner, name))
        text = " ".join(ast.unparse(node).split())
        self.log.decisions.add(Decision(self.module.name, getattr(node, "lineno", 0), text, outcome))

    def expr(self, node: ast.AST | None) -> None:
        """Walk an expression."""
        if node is None:
            return
        method = getattr(self, f"expr_{type(node).__name__.lower()}", None)
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

    # names

    def expr_name(self, node: ast.Name) -> None:
        if not isinstance(node.ctx, ast.Load):
            scope = self.scope_of(node.id)
            if scope is not None:
                scope.first.setdefault(node.id, "load")
            return
        scope = self.scope_of(node.id)
        if scope is not None:
            self._local(node, scope)
            return
        if node.id in ("super", "__class__"):
            return
        if node.id == "__file__":
            self.problem(node, "__file__ is another file once the model stands alone", "pass the data as an argument")
            return
        if self.role == "type" and self.absent(node.id):
            self.refer(node, self.world.modules.outside("typing", "Any"))
            return
        key = self.resolve(node.id, node)
        if isinstance(key, Builtin):
            if node.id in _UNDECIDABLE:
                self.problem(
                    node, f"{node.id} makes the needed names undecidable", "use a dict of the names that may be meant"
                )
        elif isinstance(key, Package):
            self.problem(
                node, f"the module {key.module!r} is used as a value", "write module.name where the name is needed"
            )
        elif key is not None:
            self.reference(node, key)

    def _is_thing(self, value: Any) -> bool:
        """Whether a value is one certain object, which a second call of its class would not give."""
        if isinstance(value, (nn.Module, Tensor)):
            return True
        plain = isinstance(value, (type, enum.Enum, functools.partial)) or inspect.isroutine(value)
        return not plain and hasattr(value, "__dict__") and not self.world.modules.traced(type(value).__module__)

    def _local(self, node: ast.Name, scope: Scope) -> None:
        if node.id in scope.texts:
            self.replace(node, scope.texts[node.id])
            return
        if node.id in scope.imports:
            key = scope.imports[node.id]
            if isinstance(key, (Unit, Import)):
                self.reference(node, key)
            return
        if node.id in scope.known and not self.opaque:
            value, used = scope.known[node.id]
            own = [u for u in used if u[0] == "parameter" and u[2] == node.id]
            if own and _is_choice(value) and self.writable(value):
                self.log.fixed.add((own[0][1], node.id))
            if own and self.world.removable((own[0][1], node.id)):
                if not self._is_thing(value) and self.substitute(node, value):
                    self.log.fixed.add((own[0][1], node.id))
                    return
                self.world.staying.add((own[0][1], node.id))
        scope.first.setdefault(node.id, "load")
        scope.loads.add(node.id)
        if scope.kind == "class":
            self.log.reads.add(node.id)
            self.log.loose.add(node.id)

    def writable(self, value: Any) -> bool:
        """Whether a value has a source form."""
        try:
            self.reified(value)
        except (Unwritable, Unresolved):
            return False
        return True

    def substitute(self, node: ast.expr, value: Any) -> bool:
        """Put a value in the place of an expression; False when it has no source form."""
        try:
            text = self.reified(value)
        except (Unwritable, Unresolved):
            return False
        if self.role != "call":
            self.escapes(value)
        if text.startswith("(") and text.endswith(")") and text[1:].startswith("lambda"):
            text = text if self.role == "call" else text[1:-1]
        if not edits.is_atom(text) and not text.startswith(("(", "[", "{", "lambda")):
            text = f"({text})" if self.tight(node) else text
        self.replace(node, text)
        return True

    def tight(self, node: ast.expr) -> bool:
        """Whether an operator, an attribute or a subscript could take hold of the text put in place of `node`."""
        after = bytes(self.text.data[self.text.end(node) : self.text.end(node) + 4]).lstrip()
        before = bytes(self.text.data[max(0, self.text.start(node) - 4) : self.text.start(node)]).rstrip()
        return (
            after[:1] in b".[*" and bool(after) or before[-1:] in (b"*", b"-", b"+", b"/", b"%", b"@") and bool(before)
        )

    def reference(self, node: ast.expr, key: Key) -> None:
        """An expression that names a definition or an import."""
        if isinstance(key, Unit):
            live = vars(sys.modules[key.module]).get(key.name)
            if self.role == "value" and (isinstance(live, type) or callable(live)):
                self.escapes(live)
        self.refer(node, key)

    def absent(self, name: str) -> bool:
        """Whether a name is there for type checkers only, and nothing in the file could stand for it."""
        if name in vars(self.module.live):
            return False
        try:
            self.world.modules.resolve(self.module, name)
        except Unresolved:
            return True
        return False

    # attributes

    def expr_attribute(self, node: ast.Attribute) -> None:
        if self._through_module(node):
            return
        function = self.function
        mine = isinstance(node.value, ast.Name) and function is not None and node.value.id == function.self_name
        if not isinstance(node.ctx, ast.Load):
            if not (mine and function is not None and function.construction):
                self.log.written.add(node.attr)
        else:
            if self._field(node):
                return
            self.log.reads.add(node.attr)
            if not mine:
                self.log.open_reads.add(node.attr)
            if self.role != "call":
                self.log.loose.add(node.attr)
        self.in_role("value" if self.role == "call" else self.role, node.value)

    def _through_module(self, node: ast.Attribute) -> bool:
        """Names behind modules: `package.module.name` becomes the name, `torch.nn.functional` stays."""
        chain = [node]
        while isinstance(chain[-1].value, ast.Attribute):
            chain.append(chain[-1].value)
        root = chain[-1].value
        if not isinstance(root, ast.Name):
            return False
        if self.role == "type" and self.scope_of(root.id) is None and self.absent(root.id):
            self.refer(node, self.world.modules.outside("typing", "Any"))
            return True
        scope = self.scope_of(root.id)
        if scope is not None and root.id not in scope.imports:
            return False
        if scope is None and not isinstance(vars(self.module.live).get(root.id), ModuleType):
            return False
        key = scope.imports[root.id] if scope else self.resolve(root.id, root)
        if isinstance(key, Import) and not key.name:
            self._outside_chain(root, chain[::-1], key)
            return True
        if not isinstance(key, Package):
            return key is None
        live: Any = sys.modules.get(root.id) if scope is None and not key.module == root.id else None
        live = vars(self.module.live).get(root.id) if scope is None else sys.modules[key.module]
        for part in reversed(chain):
            if not hasattr(live, part.attr):
                self.problem(node, f"module {live.__name__!r} has no attribute {part.attr!r}")
                return True
            value = getattr(live, part.attr)
            if isinstance(value, ModuleType):
                live = value
                continue
            self._behind(part, live)
            return True
        if self.world.modules.traced(live.__name__):
            self.problem(
                node, f"the module {live.__name__!r} is used as a value", "write module.name where the name is needed"
            )
        else:
            self.refer(node, self.world.modules.outside(live.__name__))
        return True

    def _behind(self, node: ast.Attribute, live: ModuleType) -> None:
        """`node` is a name of the module `live`."""
        try:
            if self.world.modules.traced(live.__name__):
                key = self.world.modules.resolve(self.world.modules.read(live.__name__), node.attr)
            else:
                key = self.world.modules.outside(live.__name__, node.attr)
        except Unresolved as error:
            self.problem(node, str(error), error.hint)
            return
        if isinstance(key, (Unit, Import)):
            self.reference(node, key)

    def _outside_chain(self, root: ast.Name, chain: list[ast.Attribute], key: Import) -> None:
        """`torch.utils.checkpoint.checkpoint`, where the text imports the submodule by its dotted name."""
        if key.module == "torch" and len(chain) > 2 and chain[0].attr == "ops" and chain[1].attr not in _OPS:
            self.problem(
                chain[1],
                f"the custom operator torch.ops.{chain[1].attr}.{chain[2].attr} is called by its name, which does not say where it is defined",
                "call the function that torch.library gave back",
            )
        live: Any = vars(self.module.live).get(root.id)
        dotted = root.id
        for part in chain:
            live = getattr(live, part.attr, None)
            dotted += f".{part.attr}"
            named = [
                a.name
                for s, a in self.module.bindings.get(root.id, [])
                if isinstance(s, ast.Import) and a and not a.asname
            ]
            if isinstance(live, ModuleType) and dotted in named and dotted == live.__name__:
                self.refer(part, self.world.modules.outside(live.__name__, spelling=f"import {live.__name__}"))
                return
        self.refer(root, key)

    def _field(self, node: ast.Attribute) -> bool:
        """A field of a config: a class, a function or an enum is written as its name; True if it was replaced."""
        if self.opaque:
            return False
        try:
            base, used = self.known(node.value)
        except Unknown:
            return False
        if type(base) not in self.world.configs or inspect.ismethod(getattr(base, node.attr, None)):
            return False
        try:
            value, used = self.known(node)
        except Unknown:
            self.log.fields.add((type(base), node.attr))
            return False
        fixed = (type(base), node.attr) in self.before.fixed_fields and len(self.world.configs[type(base)]) == 1
        if (
            _is_choice(value)
            or isinstance(value, enum.Enum)
            or (fixed and isinstance(value, (str, int, float, type(None))))
        ):
            if self.substitute(node, value):
                if _is_choice(value) or isinstance(value, enum.Enum):
                    self.decided(node, _shown(value), used)
                else:
                    self.log.fixed_fields.add((type(base), node.attr))
                return True
        self.log.fields.add((type(base), node.attr))
        return False

    # choices

    def expr_ifexp(self, node: ast.IfExp) -> None:
        found = self.decide(node.test)
        if found is None:
            self.test(node.test)
            self.expr(node.body)
            self.expr(node.orelse)
            return
        self.decided(node.test, str(found[0]), found[1])
        self.replace(node, self.text_of(node.body if found[0] else node.orelse))

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

    def expr_subscript(self, node: ast.Subscript) -> None:
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
        if not _is_choice(value) or not self.substitute(node, value):
            return False
        self.decided(node, _shown(value), used)
        return True

    # scopes inside expressions

    def expr_lambda(self, node: ast.Lambda) -> None:
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

    expr_listcomp = expr_setcomp = expr_dictcomp = expr_generatorexp = _comprehension

    # strings

    def expr_constant(self, node: ast.Constant) -> None:
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

    def expr_joinedstr(self, node: ast.JoinedStr) -> None:
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


def _is_choice(value: Any) -> bool:
    """A class or function as a hyperparameter."""
    return (
        isinstance(value, type)
        or inspect.isroutine(value)
        or type(value).__name__ == "partial"
        or (callable(value) and inspect.isfunction(getattr(value, "__wrapped__", None)))
    )


def _shown(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return str(value)
    if type(value).__name__ == "partial":
        return f"partial({_shown(value.func)})"
    return getattr(value, "__name__", None) or repr(value)
