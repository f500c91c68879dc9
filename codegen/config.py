"""Config classes: a plain dataclass with the fields that are still read and the values of this configuration."""

from __future__ import annotations

import ast
import enum
from typing import Any

from . import edits
from .definitions import Definitions
from .reify import Unwritable, config_fields
from .resolve import Unresolved
from .walk import Scope


class Configs(Definitions):
    """The text of config classes."""

    def config(self, node: ast.ClassDef, cls: type) -> str:
        """The class as a standard dataclass, whatever made it."""
        value = self.world.configs[cls][0]
        used = self._used(cls)
        methods = self._methods(cls, used)
        outside = self.world.modules.outside
        lines = [
            f"@{self.mark(outside('dataclasses', 'dataclass'))}\nclass {self.world.marks.mark(self.unit, hard=False)}:"
        ]
        if documentation := ast.get_docstring(node, clean=False):
            lines.append(f'    """{documentation}"""\n')
        bodies = [f"    {self._field_text(cls, name, value)}" for name in config_fields(cls) if name in used]
        lines += bodies
        for module_class, method in methods:
            lines.append("\n" + self._config_method(module_class, method).rstrip("\n"))
        if not bodies and not methods:
            lines.append("    pass")
        return "\n".join(lines) + "\n"

    def _used(self, cls: type) -> set[str]:
        """Fields and methods that retained code reads."""
        if cls in self.before.whole:
            return set(config_fields(cls))
        return {n for c, n in self.before.fields if c is cls} | {
            n for n in self.before.open_reads if hasattr(cls, n) or n in config_fields(cls)
        }

    def _methods(self, cls: type, used: set[str]) -> list[tuple[type, ast.FunctionDef]]:
        """Properties and methods in use, with all that they read in turn."""
        found: dict[str, tuple[type, ast.FunctionDef]] = {}
        known: dict[str, tuple[type, ast.FunctionDef]] = {}
        for base in reversed(cls.__mro__):
            if self.world.modules.traced(base.__module__):
                for statement in self._class_node(base).body:
                    if isinstance(statement, ast.FunctionDef):
                        known[statement.name] = (base, statement)
        todo = list(used)
        while todo:
            name = todo.pop()
            if name in known and name not in found:
                found[name] = known[name]
                method = known[name][1]
                me = method.args.args[0].arg if method.args.args else ""
                for part in ast.walk(method):
                    if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == me:
                        used.add(part.attr)
                        todo.append(part.attr)
        return [known[name] for name in known if name in found]

    def _class_node(self, cls: type) -> ast.ClassDef:
        module = self.world.modules.read(cls.__module__)
        return next(s for s, _ in module.bindings[cls.__qualname__] if isinstance(s, ast.ClassDef))

    def _field_text(self, cls: type, name: str, value: Any) -> str:
        """`name: annotation = value  # comment`."""
        held = getattr(value, name)
        try:
            text = self.reified(held)
        except (Unwritable, Unresolved) as error:
            self.problem(None, f"the field {cls.__qualname__}.{name}: {error}", getattr(error, "hint", ""))
            return f"{name} = None"
        factory = type(held) in self.world.configs or not isinstance(
            held, (bool, int, float, str, bytes, tuple, type(None), enum.Enum, type)
        )
        if factory and (type(held) in (list, dict, set) or hasattr(type(held), "__dict__")) and not callable(held):
            maker = self.mark(self.world.modules.outside("dataclasses", "field"))
            called = self.reified(type(held)) if text == f"{self.reified(type(held))}()" else f"lambda: {text}"
            text = f"{maker}(default_factory={called})"
        annotation, comment = self._declared(cls, name, held)
        return f"{name}: {annotation} = {text}{comment}"

    def _declared(self, cls: type, name: str, held: Any) -> tuple[str, str]:
        """(annotation, comment behind the field) as the source has them."""
        for base in cls.__mro__:
            if not self.world.modules.traced(base.__module__):
                continue
            for statement in self._class_node(base).body:
                if (
                    isinstance(statement, ast.AnnAssign)
                    and isinstance(statement.target, ast.Name)
                    and statement.target.id == name
                ):
                    module = self.world.modules.read(base.__module__)
                    outer = self.module, self.text
                    self.module = self.text = module
                    annotation = statement.annotation
                    text = self.captured(
                        module.start(annotation), module.end(annotation), lambda a=annotation: self.annotation(a)
                    )
                    self.module, self.text = outer
                    at = module.comments.get(statement.end_lineno or 0)
                    comment = module.slice(at, module.starts[statement.end_lineno or 0] - 1) if at else ""
                    return text, f"  {comment}" if comment else ""
        return type(held).__name__, ""

    def _config_method(self, cls: type, node: ast.FunctionDef) -> str:
        module = self.world.modules.read(cls.__module__)
        outer = self.module, self.text, self.edits, self.scopes
        self.module = self.text = module
        self.edits, self.scopes = [], [Scope("class", {node.name})]
        self._statement_functiondef(node)
        start, end = module.starts[self.lead(node) - 1], module.starts[node.end_lineno or 0]
        text = edits.applied(module, start, end, self.edits)
        self.module, self.text, self.edits, self.scopes = outer
        return text
