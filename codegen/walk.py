"""The walk over one definition: scopes, changes to the text, references to other definitions, problems found."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from . import edits
from .errors import Problem
from .facts import World
from .keys import Builtin, Key, Package, Unit
from .modules import Fragment, Module, Text
from .record import CodeKey, code_key
from .resolve import Unresolved

Use = tuple[str, Any, str]  # ("parameter", code key, name), ("field", class, name), ("attribute", class, name)


@dataclass
class Function:
    """A function that is being walked."""

    key: CodeKey
    name: str
    owner: type | None  # the class whose method it is
    self_name: str | None
    construction: bool  # it runs during construction alone
    opaque: bool = False


@dataclass
class Scope:
    """A scope and what is known of its names."""

    kind: str  # "function", "class" or "expression"
    names: set[str] = field(default_factory=set)
    hidden: set[str] = field(default_factory=set)  # names of which nothing is left in the text
    known: dict[str, tuple[Any, tuple[Use, ...]]] = field(default_factory=dict)
    imports: dict[str, Key | Package | Builtin] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    tainted: dict[str, str] = field(default_factory=dict)
    loads: set[str] = field(default_factory=set)
    first: dict[str, str] = field(default_factory=dict)  # whether a name is first stored for sure, or perhaps loaded
    function: Function | None = None


class Unknown(Exception):
    """The value is not a frozen fact."""


class Frame:
    """What every part of the walk shares."""

    def __init__(self, world: World, module: Module, unit: Unit) -> None:
        self.world = world
        self.log = world.log
        self.before = world.before
        self.module = module
        self.text: Text = module
        self.unit = unit
        self.scopes: list[Scope] = []
        self.edits: list[edits.Edit] = []
        self.forbidden: dict[Key, set[str]] = {}  # local names that a key must not be called by
        self.soft = 0  # depth of code that does not run when its definition does
        self.opaque = False

    # changes to the text

    def replace(self, node: ast.AST, text: str) -> None:
        """Put `text` in the place of an expression; parentheses that it does not need go with it."""
        start, end = self.text.start(node), self.text.end(node)
        if edits.is_atom(text):
            while wider := edits.grouping(self.text, start, end):
                start, end = wider
        self.edits.append((start, end, text))

    def captured(self, start: int, end: int, walk: Callable[[], object]) -> str:
        """The text between two offsets as `walk` changes it; the changes are made here and nowhere else."""
        outer, self.edits = self.edits, []
        try:
            walk()
            return edits.applied(self.text, start, end, self.edits)
        finally:
            self.edits = outer

    # scopes and names

    def scope_of(self, name: str) -> Scope | None:
        """The scope of this definition that binds `name`; None for names of the module."""
        for depth, scope in enumerate(reversed(self.scopes)):
            if scope.kind == "class" and depth:
                continue
            if name in scope.names or name in scope.imports or name in scope.texts:
                return scope
        return None

    @property
    def function(self) -> Function | None:
        """The function whose body is being walked, without lambdas."""
        return next((s.function for s in reversed(self.scopes) if s.function), None)

    def context(self) -> str:
        """ "construction" in code that runs during construction alone, else "runtime"."""
        for scope in reversed(self.scopes):
            if scope.kind == "expression":
                continue
            if scope.kind == "function" and scope.function and scope.function.construction:
                return "construction"
            return "runtime"
        return "runtime"

    def live(self, name: str) -> Any:
        """The object behind a name of the module. Raises `KeyError`."""
        return vars(self.module.live)[name]

    def resolve(self, name: str, node: ast.AST) -> Key | Package | Builtin | None:
        """What a name of the module stands for; None after a problem."""
        try:
            return self.world.modules.resolve(self.module, name)
        except Unresolved as error:
            self.problem(node, str(error), error.hint)
            return None

    def refer(self, node: ast.AST, key: Key) -> None:
        """Let an expression be the name of `key`."""
        self.edits.append((self.text.start(node), self.text.end(node), self.mark(key)))

    def mark(self, key: Key) -> str:
        """The mark of a key at this place."""
        taken = [s.names - s.hidden for s in self.scopes if s.kind != "class"]
        self.forbidden.setdefault(key, set()).update(*taken)
        return self.world.marks.mark(key, hard=not self.soft)

    # what is found

    def problem(self, node: ast.AST | None, reason: str, hint: str = "") -> None:
        """Note why this code cannot be written out."""
        line = getattr(node, "lineno", 0)
        text = ""
        if isinstance(self.text, Fragment):
            line, text = 0, self.text.text
        elif line:
            text = self.module.line(line).replace("\x03", "")
        self.log.problems.append((self.unit, Problem(reason, hint, self.module.file, line, text)))

    def called(self, keys: Iterable[CodeKey | None]) -> None:
        """Note that functions are called here."""
        for key in keys:
            if key is not None:
                self.log.called.setdefault(key, set()).add(self.context())

    def escapes(self, value: Any) -> None:
        """Note that a function or class is passed on as a value, to be called by code that is not known."""
        for key in function_keys(value):
            self.log.escaped.add(key)


def class_key(cls: type) -> CodeKey:
    """The key under which calls of a class are noted, whatever its constructor."""
    return CodeKey(cls.__module__, 0, cls.__qualname__)


def function_keys(value: Any) -> list[CodeKey]:
    """The keys of what is called when `value` is called."""
    if isinstance(value, type):
        keys = [class_key(value)]
        for name in ("__init__", "__new__"):
            key = code_key(getattr(value, name)) if callable(getattr(value, name, None)) else None
            keys += [key] if key else []
        return keys
    function = getattr(value, "func", value) if type(value).__name__ == "partial" else value
    if function is not value:
        return function_keys(function)
    key = code_key(value) if callable(value) else None
    return [key] if key else []
