"""What an expression asks the machine: which names and calls stand for the environment, devices, time or chance."""

from __future__ import annotations

import ast
import builtins
import sys
from types import ModuleType
from typing import Any

from . import taint
from .keys import Builtin, Import, Package, Unit
from .walk import Frame, Unknown


class Questions(Frame):
    """Why the value of an expression belongs to this machine."""

    def live_of(self, key: Any) -> Any:
        """The object behind a key."""
        if isinstance(key, Builtin):
            return getattr(builtins, key.name)
        module = self.import_module(key.module)
        if isinstance(key, Package) or (isinstance(key, Import) and not key.name):
            return module
        return getattr(module, key.name)

    def import_module(self, name: str) -> ModuleType:
        """An imported module by its name. Raises `Unknown`."""
        if name not in sys.modules:
            raise Unknown
        return sys.modules[name]

    def taint(self, node: ast.AST | None) -> str | None:
        """Why the value of an expression belongs to this machine, or None."""
        if node is None:
            return None
        for part in ast.walk(node):
            why = self._taint_of(part)
            if why:
                return why
        return None

    def _taint_of(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            scope = self.scope_of(node.id)
            if scope is not None:
                return scope.tainted.get(node.id)
            value = vars(self.module.live).get(node.id, getattr(builtins, node.id, None))
            if (why := self.before.tainted_units.get(Unit(self.module.name, node.id))) is not None:
                return why
            home = getattr(value, "__module__", None)
            name = getattr(value, "__name__", "")
            if isinstance(home, str) and (why := self.before.tainted_units.get(Unit(home, name))) is not None:
                return why
            return None if isinstance(value, ModuleType) else taint.of_value(value)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            function = self.function
            if isinstance(node.value, ast.Name) and function and node.value.id == function.self_name:
                return self.before.tainted_attributes.get(node.attr)
            base = self._module_behind(node.value)
            if base is not None:
                return taint.of_attribute(base, node.attr) or self._tainted_unit(base, node.attr)
        return None

    def _tainted_unit(self, module: ModuleType, name: str) -> str | None:
        return self.before.tainted_units.get(Unit(module.__name__, name))

    def _module_behind(self, node: ast.AST) -> ModuleType | None:
        """The module that an expression of names and dots stands for."""
        if isinstance(node, ast.Name) and self.scope_of(node.id) is None:
            value = vars(self.module.live).get(node.id)
        elif isinstance(node, ast.Name):
            scope = self.scope_of(node.id)
            key = scope.imports.get(node.id) if scope else None
            value = self.live_of(key) if key is not None else None
        elif isinstance(node, ast.Attribute):
            base = self._module_behind(node.value)
            value = None if base is None else getattr(base, node.attr, None)
        else:
            value = None
        return value if isinstance(value, ModuleType) else None
