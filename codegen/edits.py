"""Changes to a text as replaced byte ranges, and the few rules of layout that replacing needs."""

from __future__ import annotations

import ast
import re

from .modules import Text

_WORDS = (
    b"return",
    b"in",
    b"and",
    b"or",
    b"not",
    b"if",
    b"else",
    b"elif",
    b"is",
    b"yield",
    b"assert",
    b"lambda",
    b"while",
    b"await",
)
Edit = tuple[int, int, str]


class Overlap(Exception):
    """Two changes of the same bytes: an error in codegen itself."""


def applied(text: Text, start: int, end: int, edits: list[Edit]) -> str:
    """The bytes from `start` to `end` with the edits made. Raises `Overlap` when two of them meet."""
    parts: list[str] = []
    at = start
    for a, b, new in sorted(edits, key=lambda e: (e[0], e[1])):
        if a < at or b > end or b < a:
            raise Overlap(f"bytes {a}..{b} ({text.slice(a, b)!r} -> {new!r}) are changed twice")
        parts += [text.slice(at, a), new]
        at = b
    return "".join([*parts, text.slice(at, end)])


def indentation(line: str) -> str:
    """The white space that a line starts with."""
    return line[: len(line) - len(line.lstrip(" \t"))]


def reindented(text: str, old: str, new: str) -> str:
    """Lines that start with `old` start with `new`; others are left alone."""
    if old == new:
        return text
    return "\n".join(
        new + line[len(old) :] if line.startswith(old) and line.strip() else line for line in text.split("\n")
    )


def grouping(text: Text, start: int, end: int) -> tuple[int, int] | None:
    """The range of the parentheses directly around an expression, if they only group it and are no call's."""
    data = text.data
    a, b = start - 1, end
    while a >= 0 and data[a : a + 1].isspace():
        a -= 1
    while b < len(data) and data[b : b + 1].isspace():
        b += 1
    if a < 0 or data[a : a + 1] != b"(" or data[b : b + 1] != b")":
        return None
    before = bytes(data[max(0, a - 40) : a]).rstrip()
    word = re.search(rb"[A-Za-z_0-9]+$", before)
    if word and word[0] not in _WORDS:
        return None
    if not word and before[-1:] in (b")", b"]", b"}", b'"', b"'"):
        return None
    return a, b + 1


def whole_range(text: Text, node: ast.AST, floor: int) -> tuple[int, int]:
    """A node's range with all the parentheses around it that start at or behind `floor`."""
    found = text.start(node), text.end(node)
    while (wider := grouping(text, *found)) and wider[0] >= floor:
        found = wider
    return found


def without(text: Text, items: list[tuple[int, int]], gone: set[int], end: int) -> list[Edit]:
    """Edits that take items out of a list with commas; `end` is the offset of what closes the list."""
    kept = [i for i in range(len(items)) if i not in gone]
    if not gone:
        return []
    if not kept:
        return (
            [(items[0][0], end, "")]
            if text.slice(items[-1][1], end).strip(" \n,") == ""
            else [(items[0][0], items[-1][1], "")]
        )
    edits: list[Edit] = []
    run: list[int] = []
    for i in range(len(items)):
        if i in gone:
            run.append(i)
            continue
        if run:
            edits.append((items[run[0]][0], items[i][0], ""))
            run = []
    if run:
        edits.append((items[run[0] - 1][1], items[run[-1]][1], ""))
    return edits


def is_atom(text: str) -> bool:
    """Whether an expression binds tighter than any operator around it."""
    try:
        node = ast.parse(re.sub("\x01!?[0-9]+\x02", "mark", text).replace("\x03", "\n").strip(), mode="eval").body
    except SyntaxError:
        return False
    if isinstance(node, ast.Constant):
        return not (isinstance(node.value, (int, float)) and text.startswith("-"))
    return isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript, ast.List, ast.Dict, ast.Set))
