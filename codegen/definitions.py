"""Functions and classes: signatures without what is fixed, bodies without what nobody calls, bases without what is empty."""

from __future__ import annotations

import ast

from . import edits
from .decorators import class_names
from .functions import Functions
from .reify import Unwritable
from .resolve import Unresolved
from .walk import Scope


class Definitions(Functions):
    """The walk over functions and classes."""

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

    def _statement_classdef(self, node: ast.ClassDef) -> tuple[bool, bool]:
        outer_owner, outer_opaque = self.owner, self.opaque
        cls = self._live_class(node)
        self.opaque = self.opaque or self.world.is_opaque(self.module.name, cls.__qualname__ if cls else node.name)
        self.decorators(node)
        self._bases(node, cls)
        for keyword in node.keywords:
            self.expr(keyword.value)
        self.owner = cls
        self.scopes.append(Scope("class", class_names(node)))
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
