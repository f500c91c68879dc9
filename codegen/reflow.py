"""Line breaks of statements that were changed: one line where it fits, brackets opened up where it does not.

The rules are those of the usual formatters, for 120 columns; a comma before a closing bracket keeps its brackets open.
Statements that stand as in the source keep the breaks they had.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator

from .modules import STRING_BREAK

WIDTH = 120
_SKIP = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def reflowed(text: str, untouched: set[str]) -> str:
    """`text` with the changed statements laid out; `untouched` holds the stripped lines of the sources."""
    laid_out = _reflowed(text, untouched)
    one, other = (ast.dump(ast.parse(t.replace(STRING_BREAK, "\n"))) for t in (text, laid_out))
    return laid_out if one == other else text  # line breaks are never worth another meaning


def _reflowed(text: str, untouched: set[str]) -> str:
    lines = text.split("\n")
    out: list[str] = []
    at = 0
    for first, last in _statements(text):
        out += lines[at:first]
        part = lines[first : last + 1]
        if all(line.strip() in untouched for line in part) and all(len(line) <= WIDTH for line in part):
            out += part
        else:
            out += _laid_out(part)
        at = last + 1
    return "\n".join([*out, *lines[at:]])


def _statements(text: str) -> Iterator[tuple[int, int]]:
    """First and last line, from 0, of every logical line without strings or comments over several lines."""
    first: int | None = None
    plain = True
    last = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NEWLINE:
            if first is not None and plain:
                yield first, token.start[0] - 1
            first, plain = None, True
        elif token.type == tokenize.COMMENT:
            plain = plain and first is None
        elif token.type == tokenize.STRING and last == tokenize.STRING:
            plain = False
        elif token.type not in _SKIP:
            if first is None:
                first = token.start[0] - 1
            if token.start[0] != token.end[0]:
                plain = False
        last = token.type if token.type not in (tokenize.NL, tokenize.COMMENT) else last


def _laid_out(part: list[str]) -> list[str]:
    indent = part[0][: len(part[0]) - len(part[0].lstrip())]
    if any(line.rstrip().endswith("\\") for line in part):
        return part
    if len(part) > 1:
        if any(
            line.rstrip().endswith(",") and part[i + 1].lstrip()[:1] in tuple(")]}") for i, line in enumerate(part[:-1])
        ):
            return [new for line in _closed(part) for new in _opened_line(line)]
        joined = _joined(part)
        if len(indent + joined) <= WIDTH:
            return [indent + joined]
        if all(len(line) <= WIDTH for line in part):
            return part
        part = [indent + joined]
    if len(part[0]) <= WIDTH:
        return part
    return _opened(part[0].strip(), indent) or part


def _closed(part: list[str]) -> list[str]:
    """Brackets within a statement that were opened up and fit on one line now."""
    for start in range(len(part) - 1, 0, -1):
        line = part[start]
        if not line.rstrip().endswith(("(", "[", "{")) or line.rstrip() != line:
            continue
        indent = line[: len(line) - len(line.lstrip())]
        end = next(
            (
                i
                for i in range(start + 1, len(part))
                if part[i].startswith(indent) and part[i].strip()[:1] in tuple(")]}")
            ),
            None,
        )
        if end is None or part[end][: len(indent) + 1].isspace():
            continue
        inner = part[start + 1 : end]
        joined = indent + _joined(part[start : end + 1])
        if inner and not inner[-1].rstrip().endswith(",") and len(joined) <= WIDTH:
            part = [*part[:start], joined, *part[end + 1 :]]
    return part


def _opened_line(line: str) -> list[str]:
    """A line within open brackets, opened up itself when it is too long."""
    indent = line[: len(line) - len(line.lstrip())]
    if len(line) <= WIDTH:
        return [line]
    comma = "," if line.rstrip().endswith(",") else ""
    opened = _opened(line.strip().removesuffix(","), indent)
    return [*opened[:-1], opened[-1] + comma] if opened else [line]


def _joined(part: list[str]) -> str:
    text = ""
    for line in (p.strip() for p in part):
        tight = (
            not text
            or text[-1] in "([{"
            or line[:1] in tuple(")]}")
            or (line.startswith(".") and not line.startswith("..."))
        )
        text += line if tight else f" {line}"
    return re.sub(r"^(return|[\w., :\[\]]+ =) \((.*)\)$", _unwrapped, text)


def _unwrapped(found: re.Match[str]) -> str:
    inner = found[2]
    depth = 0
    for character in inner:
        depth += (character in "([{") - (character in ")]}")
        if depth < 0:
            return found[0]
    if re.search(r"^\w+ for |,|:=| for ", inner) or "'" in inner or '"' in inner:
        return found[0]
    return f"{found[1]} {inner}"


def _opened(line: str, indent: str) -> list[str]:
    """A long line with its last bracket opened up; empty when it has none."""
    pairs = _pairs(line)
    top = [p for p in pairs if not any(a < p[0] and p[1] < b for a, b in pairs)]
    top = [p for p in top if p[1] - p[0] > 1]
    if not top:
        return []
    start, end = top[-1] if not line.startswith(("def ", "class ", "async def ")) else top[0]
    inner = line[start + 1 : end]
    head, tail = line[: start + 1], line[end:]
    deeper = f"{indent}    "
    if len(deeper + inner) <= WIDTH:
        return [indent + head, deeper + inner, indent + tail]
    items = _items(inner)
    called = line[start] == "(" and re.search(r"[\w)\]]$", line[:start]) is not None
    lines = [indent + head]
    for item in items:
        lines += [deeper + item] if len(deeper + item) < WIDTH else (_opened(item, deeper) or [deeper + item])
        if len(items) > 1 or (called and " for " not in item):  # else a comma would make a tuple of it
            lines[-1] += ","
    return [*lines, indent + tail]


def _tokens(line: str) -> Iterator[tokenize.TokenInfo]:
    try:
        yield from tokenize.generate_tokens(io.StringIO(line).readline)
    except (tokenize.TokenError, IndentationError):
        return


def _pairs(line: str) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    stack: list[int] = []
    for token in _tokens(line):
        if token.type == tokenize.OP and token.string in "([{":
            stack.append(token.start[1])
        elif token.type == tokenize.OP and token.string in ")]}" and stack:
            found.append((stack.pop(), token.start[1]))
    return found


def _items(inner: str) -> list[str]:
    pairs = _pairs(f"({inner})")
    commas = [t.start[1] - 1 for t in _tokens(f"({inner})") if t.type == tokenize.OP and t.string == ","]
    cuts = [c for c in commas if not any(a > 0 and a < c + 1 < b for a, b in pairs)]
    parts: list[str] = []
    at = 0
    for cut in [*cuts, len(inner)]:
        if item := inner[at:cut].strip():
            parts.append(item)
        at = cut + 1
    return parts
