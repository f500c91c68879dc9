"""What surrounds a definition: which methods stay, which decorators only register, the name that it goes by."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from .branches import Branches
from .record import CodeKey, code_key
from .scopes import FUNCTIONS

_IMPLICIT = {
    "__module__", "__dict__", "__weakref__", "__doc__", "__annotations__", "__parameters__", "__orig_bases__", "__qualname__",
    "__abstractmethods__", "_abc_impl", "__static_attributes__", "__firstlineno__", "__slots__", "__match_args__",
    "__annotate__", "__annotate_func__", "__annotations_cache__", "__classcell__", "__protocol_attrs__", "_is_protocol",
    "_is_runtime_protocol", "__init__", "__subclasshook__", "__non_callable_proto_members__",
}  # fmt: skip


class Decorators(Branches):
    """Decorators, and the methods that stay."""

    owner: type | None = None  # the class whose body is being walked

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
            extra = set(vars(live)) - class_names(node) - _IMPLICIT
            return (
                (live.__module__, live.__qualname__) == (self.module.name, node.name)
                and not extra
                and not _foreign(live)
            )
        if not inspect.isfunction(live) or hasattr(live, "__wrapped__"):
            return False
        return code_key(live) == CodeKey(self.module.name, self.text.first_line(node), node.name)

    def rename(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        """The mark of a unit where its name stands."""
        start = self.text.start(node)
        head = bytes(self.text.data[start : self.text.end(node)])
        found = re.search(rb"(?:def|class)\s+(" + re.escape(node.name.encode()) + rb")\b", head)
        assert found is not None
        self.edits.append((start + found.start(1), start + found.end(1), self.world.marks.mark(self.unit, hard=False)))


def class_names(node: ast.ClassDef) -> set[str]:
    """The names that the body of a class binds."""
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
