"""A digest in the header of an emitted file, so that a later change of its code is noticed."""

from __future__ import annotations

import ast
import hashlib
import re

_LINE = re.compile(r"^Digest of the code below: ([0-9a-f]{16})$", re.MULTILINE)


def stamped(text: str) -> str:
    """The text with the digest of its code in the module docstring; a digest that is there already is replaced."""
    head, body = _split(text)
    line = f"Digest of the code below: {_digest(body)}"
    if _LINE.search(head):
        return _LINE.sub(line, head, count=1) + body
    end = head.rindex('"""')
    return head[:end].rstrip("\n") + f"\n\n{line}\n" + head[end:] + body


def unchanged(text: str) -> bool | None:
    """Whether the code is what it was when it was stamped; None for a text without a stamp."""
    try:
        head, body = _split(text)
    except (ValueError, SyntaxError):
        return None
    match = _LINE.search(head)
    return match and match[1] == _digest(body)


def _split(text: str) -> tuple[str, str]:
    """The module docstring with all before it, and the rest. Raises ValueError when there is none."""
    first = next(iter(ast.parse(text).body), None)
    if (
        not isinstance(first, ast.Expr)
        or not isinstance(first.value, ast.Constant)
        or not isinstance(first.value.value, str)
    ):
        raise ValueError("no docstring")
    lines = text.splitlines(keepends=True)
    return "".join(lines[: first.end_lineno]), "".join(lines[first.end_lineno :])


def _digest(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()[:16]
