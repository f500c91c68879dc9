"""Names in text that is not named yet: a mark stands for a definition or an import until the layout has named them all."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass

_MARK = re.compile("\x01(!?)([0-9]+)\x02")


@dataclass(frozen=True, order=True)
class Unit:
    """A definition at module level that goes into the file."""

    module: str
    name: str


@dataclass(frozen=True, order=True)
class Import:
    """Something that the file imports: a module, or a name of it."""

    module: str
    name: str = ""


Key = Unit | Import


@dataclass(frozen=True)
class Package:
    """A traced module, used through its attributes."""

    module: str


@dataclass(frozen=True)
class Builtin:
    """A name that needs no definition."""

    name: str


class Marks:
    """Marks and the keys behind them. A hard mark is needed when its definition runs, a soft one only later."""

    def __init__(self) -> None:
        self._keys: list[Key] = []
        self._numbers: dict[Key, int] = {}

    def mark(self, key: Key, hard: bool) -> str:
        """The mark that stands for `key` in text."""
        if key not in self._numbers:
            self._numbers[key] = len(self._keys)
            self._keys.append(key)
        return f"\x01{'!' if hard else ''}{self._numbers[key]}\x02"

    def keys(self, text: str, hard_only: bool = False) -> list[Key]:
        """The keys that `text` needs, each once, in the order in which it needs them."""
        found = {self._keys[int(m[2])]: None for m in _MARK.finditer(text) if m[1] or not hard_only}
        return list(found)

    def ordered(self, text: str) -> list[Key]:
        """The keys of `text` in the order of use: what a call is given before what it calls."""
        try:
            tree = ast.parse(_MARK.sub(r"_mark\2_", text).replace("\x03", "\n"))
        except SyntaxError:
            return self.keys(text)
        found: dict[Key, None] = {}

        def visit(node: ast.AST) -> None:
            children = list(ast.iter_child_nodes(node))
            if isinstance(node, ast.Call):
                children = [*node.args, *node.keywords, node.func]
            for child in children:
                visit(child)
            if isinstance(node, ast.Name) and (name := re.fullmatch(r"_mark([0-9]+)_", node.id)):
                found[self._keys[int(name[1])]] = None

        visit(tree)
        return [*found, *(k for k in self.keys(text) if k not in found)]

    def fill(self, text: str, names: Mapping[Key, str]) -> str:
        """`text` with the names in place of the marks."""
        return _MARK.sub(lambda m: names[self._keys[int(m[2])]], text)
