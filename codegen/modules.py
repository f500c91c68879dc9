"""The source text of a module: its tree, the bytes behind every node, and what binds each of its names.

Columns of the ast module count bytes of UTF-8, so text is cut as bytes. Line breaks inside strings are kept apart from
those between statements (`STRING_BREAK`), so that text can be indented line by line without touching strings.
"""

from __future__ import annotations

import ast
import io
import linecache
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

STRING_BREAK = "\x03"

Binding = tuple[ast.stmt, ast.alias | None]


class SourceMissing(Exception):
    """A module whose text cannot be read."""


class Text:
    """A parsed text with the bytes of its nodes."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tree = ast.parse(text)
        self.data = bytearray(text.encode())
        self.starts = [0]
        for line in text.split("\n"):
            self.starts.append(self.starts[-1] + len(line.encode()) + 1)
        self.comments: dict[int, int] = {}  # line -> byte offset of the comment that ends it
        self._read_tokens()

    def _read_tokens(self) -> None:
        documentation = {
            node.body[0].lineno
            for node in ast.walk(self.tree)
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node)
        }
        lines = self.text.split("\n")
        depth_start: tuple[int, int] | None = None
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            kind = tokenize.tok_name[token.type]
            if kind == "COMMENT":
                row, column = token.start
                self.comments[row] = self.starts[row - 1] + len(lines[row - 1][:column].encode())
            elif kind == "FSTRING_START":
                depth_start = depth_start or token.start
            elif kind in ("STRING", "FSTRING_END"):
                first = depth_start or token.start
                depth_start = None
                if first[0] not in documentation:
                    for row in range(first[0], token.end[0]):
                        self.data[self.starts[row] - 1] = ord(STRING_BREAK)

    def start(self, node: ast.AST) -> int:
        """The offset of a node's first byte."""
        return self.starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(self, node: ast.AST) -> int:
        """The offset behind a node's last byte."""
        return self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def slice(self, start: int, end: int) -> str:
        """The text between two offsets."""
        return self.data[start:end].decode()

    def source(self, node: ast.AST) -> str:
        """The text of a node."""
        return self.slice(self.start(node), self.end(node))

    def line(self, number: int) -> str:
        """A line of the text, counted from 1, without its end."""
        return self.slice(self.starts[number - 1], self.starts[number] - 1)

    def first_line(self, node: ast.AST) -> int:
        """The line on which a definition starts, its decorators included."""
        return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])  # type: ignore[attr-defined]


def notice(text: str) -> str:
    """The comments at the head of a file that speak of copyright or a licence, which its copies must keep."""
    blocks: list[list[str]] = [[]]
    documentation = False
    for line in text.split("\n"):
        bare = line.strip()
        quotes = bare.count('"""') + bare.count("'''")
        if documentation or quotes:
            documentation ^= quotes == 1
            blocks.append([])
        elif bare.startswith("#"):
            blocks[-1].append(bare)
        elif bare:
            break
        else:
            blocks.append([])
    kept = ["\n".join(b) for b in blocks if re.search(r"(?i)copyright|licen[sc]e", " ".join(b))]
    return "\n#\n".join(kept)


class Module(Text):
    """The text of an imported module and the statements that bind its names."""

    def __init__(self, live: ModuleType) -> None:
        self.live = live
        self.name = live.__name__
        self.file, text = _read(live)
        try:
            super().__init__(text)
        except (SyntaxError, tokenize.TokenError) as error:
            raise SourceMissing(f"the text of {self.name} does not parse: {error}") from None
        self.bindings: dict[str, list[Binding]] = {}
        self.stars: list[ast.ImportFrom] = []
        for statement in _flat(self.tree.body):
            self._bind(statement)
        self.rebound = {name for n in ast.walk(self.tree) if isinstance(n, ast.Global) for name in n.names}

    def _bind(self, statement: ast.stmt) -> None:
        bind = self.bindings.setdefault
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bind(statement.name, []).append((statement, None))
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                if alias.name == "*" and isinstance(statement, ast.ImportFrom):
                    self.stars.append(statement)
                elif isinstance(statement, ast.Import):
                    bind(alias.asname or alias.name.split(".")[0], []).append((statement, alias))
                else:
                    bind(alias.asname or alias.name, []).append((statement, alias))
        else:
            for name in _stored(statement):
                bind(name, []).append((statement, None))

    def origin(self, statement: ast.ImportFrom) -> str:
        """The absolute name of the module that a from-import reads."""
        if not statement.level:
            return statement.module or ""
        parts = (self.live.__package__ or "").split(".")
        parts = parts[: len(parts) - statement.level + 1]
        return ".".join([*parts, *([statement.module] if statement.module else [])])


_READ: dict[str, Module] = {}  # what was read last under each name


def module_of(live: ModuleType) -> Module:
    """The text of an imported module, read anew only when it has changed. Raises `SourceMissing`."""
    held = _READ.get(live.__name__)
    if held is None or held.live is not live or held.text != _read(live)[1]:
        held = _READ[live.__name__] = Module(live)
    return held


class Fragment(Text):
    """An expression in a string, such as an annotation, read in the names of its module."""

    def __init__(self, module: Module, text: str) -> None:
        super().__init__(text)
        self.module = module


def _flat(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements at module level, with those in the arms of `if`, `try`, `with` and loops."""
    for statement in body:
        yield statement
        if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            continue
        for field in ("body", "orelse", "finalbody"):
            yield from _flat(getattr(statement, field, []))
        for handler in getattr(statement, "handlers", []):
            yield from _flat(handler.body)


def _stored(statement: ast.stmt) -> list[str]:
    """The names that one statement at module level binds itself."""
    if isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.For, ast.With, ast.Expr, ast.Delete)):
        parts: list[ast.AST] = []
        if isinstance(statement, ast.Assign):
            parts = [*statement.targets, statement.value]
        elif isinstance(statement, (ast.AnnAssign, ast.AugAssign, ast.For)):
            parts = [statement.target]
        elif isinstance(statement, ast.With):
            parts = [item.optional_vars for item in statement.items if item.optional_vars]
        elif isinstance(statement, ast.Expr):
            parts = [statement.value]
        found = [
            n for part in parts for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        ]
        inner = {id(x) for part in parts for n in ast.walk(part) for x in _comprehension_targets(n)}
        return [n.id for n in found if id(n) not in inner]
    return []


def _comprehension_targets(node: ast.AST) -> list[ast.AST]:
    if isinstance(node, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
        return [x for g in node.generators for x in ast.walk(g.target)]
    return []


def _read(live: ModuleType) -> tuple[str, str]:
    """(file, text with plain line breaks) of a module; text that was loaded from memory is found in linecache."""
    file = getattr(live, "__file__", None)
    if not file:
        raise SourceMissing(f"the module {live.__name__} has no file")
    if Path(file).is_file():
        if not file.endswith((".py", ".pyw")):
            raise SourceMissing(f"the module {live.__name__} is compiled ({Path(file).name}) and has no source")
        with tokenize.open(file) as stream:
            text = stream.read()
    else:
        text = "".join(linecache.getlines(file, vars(live)))
        if not text:
            raise SourceMissing(f"the source of {live.__name__} is not at hand ({file})")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return file, re.sub(r"(?m)^\f+", "", text)
