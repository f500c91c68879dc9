"""References: names and attributes become marks, fixed parameters and fields become their values."""

from __future__ import annotations

import ast
import enum
import inspect
import sys
from types import ModuleType
from typing import Any

from . import edits
from .dispatch import Dispatch
from .keys import Builtin, Import, Package, Unit
from .record import SIMPLE
from .reify import Unwritable
from .resolve import Unresolved
from .walk import Scope, Unknown

_UNDECIDABLE = ("eval", "exec", "globals", "locals", "vars", "__import__", "compile", "__builtins__")
_OPS = ("aten", "prims", "prim", "torch", "quantized", "_c10d_functional", "c10d", "higher_order")


class References(Dispatch):
    """The walk over names and attributes."""

    def _expr_name(self, node: ast.Name) -> None:
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
            if own and is_choice(value) and self.writable(value):
                self.log.fixed.add((own[0][1], node.id))
            if own and self.world.removable((own[0][1], node.id)):
                if _is_text(value) and self.substitute(node, value):
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
        return (after[:1] in b".[*" and bool(after)) or (
            before[-1:] in (b"*", b"-", b"+", b"/", b"%", b"@") and bool(before)
        )

    def absent(self, name: str) -> bool:
        """Whether a name is there for type checkers only, and nothing in the file could stand for it."""
        if name in vars(self.module.live):
            return False
        try:
            self.world.modules.resolve(self.module, name)
        except Unresolved:
            return True
        return False

    def _expr_attribute(self, node: ast.Attribute) -> None:
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
        live: Any = vars(self.module.live).get(root.id) if scope is None else sys.modules[key.module]
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
            if (unit := self.world.modules.home(live)) is not None:
                self.reference(part, unit)
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
        named = is_choice(value) or isinstance(value, enum.Enum)
        literal = fixed and isinstance(value, (str, int, float, type(None)))
        if (named or literal) and self.substitute(node, value):
            if named:
                self.decided(node, shown(value), used)
            else:
                self.log.fixed_fields.add((type(base), node.attr))
            return True
        self.log.fields.add((type(base), node.attr))
        return False


def is_choice(value: Any) -> bool:
    """A class or function as a hyperparameter."""
    return (
        isinstance(value, type)
        or inspect.isroutine(value)
        or type(value).__name__ == "partial"
        or (callable(value) and inspect.isfunction(getattr(value, "__wrapped__", None)))
    )


def _is_text(value: Any) -> bool:
    """Whether a value is the same wherever it is written: a literal or a choice, not an object with a state."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(_is_text, value))
    return isinstance(value, SIMPLE) or is_choice(value)


def shown(value: Any) -> str:
    """How the header names a value."""
    if isinstance(value, enum.Enum):
        return str(value)
    if type(value).__name__ == "partial":
        return f"partial({shown(value.func)})"
    return getattr(value, "__name__", None) or repr(value)
