"""The pages and what stands in their code blocks: files, commands with the output shown, pieces of Python, marks.

The form, which docs/README.md tells readers: `console` blocks hold `$ command` lines, `> ` goes on with one, other lines are its output;
a `python` block beginning with `# file: NAME` is that file, with `# shows: NAME` an excerpt of it, else a piece of the page's one
program; `# needs: WHAT` at the end of a command or at the head of a block says why it is not run, `# exits N` the exit code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OUTPUT = ("", "text")  # blocks that hold what a program prints, or a drawing
DATA = ("json", "yaml", "toml", "jinja", "html", "makefile")
COMMAND = re.compile(r"^\s*(\$ |python3? |pip |make |torchrun |srun |sbatch |bash |cd |\.venv/|\w+=\S+ python)")
_FENCE = re.compile(r"^( *)```([\w+-]*)[^\n]*\n(.*?)^\1```[ ]*$", re.DOTALL | re.MULTILINE)
_NEEDS = re.compile(r"#\s*needs: ([^\n;]+)")  # what follows a semicolon is for the reader


class Block(NamedTuple):
    """A fenced block: its language, its text and the line of the page it begins at."""

    language: str
    text: str
    line: int


class Step(NamedTuple):
    """Something to do: `kind` is file, shows, piece or command; `name` the file; `shown` the output a command is shown with."""

    kind: str
    text: str
    line: int
    name: str = ""
    shown: str = ""
    needs: str = ""
    exits: int = 0


def page_name(page: Path) -> str:
    """As it is written in links from the root."""
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> list[Block]:
    """Every fenced block of a page."""
    found = []
    for match in _FENCE.finditer(text):
        indent, language, body = match.groups()
        lines = [line.removeprefix(indent) for line in body.splitlines(keepends=True)]
        found.append(Block(language, "".join(lines), text.count("\n", 0, match.start()) + 1))
    return found


def steps(text: str) -> list[Step]:
    """What a page says to do, in its order. Raises ValueError for a block that is in none of the forms."""
    found: list[Step] = []
    for block in blocks(text):
        if block.language == "python":
            found.append(_python(block))
        elif block.language == "console":
            found += _commands(block)
        elif block.language in OUTPUT:
            command = next((line for line in block.text.splitlines() if COMMAND.match(line)), None)
            if command is not None:
                raise ValueError(
                    f"line {block.line}: {command.strip()!r} stands in a block that is not run; write ```console"
                )
        elif block.language not in DATA:
            raise ValueError(f"line {block.line}: no block is of {block.language!r}; write console, python or text")
    return found


def inline_commands(text: str) -> list[str]:
    """Command lines of ours inside of sentences."""
    return re.findall(r"`((?:python -m )?forgather_dsl [^`\n]+)`", _FENCE.sub("", text))


def indented_commands(text: str) -> list[str]:
    """Lines of code blocks made by indentation, which nothing runs."""
    return re.findall(r"\n\n {4}(?:\$ )?((?:python|pip|make|torchrun) [^\n]*)", _FENCE.sub("\n", text))


def _python(block: Block) -> Step:
    head = block.text.partition("\n")[0]
    named = re.match(r"# (file|shows): (\S+)$", head)
    if named:
        return Step(named[1], block.text, block.line, named[2])
    needs = _NEEDS.match(head)
    return Step("piece", block.text, block.line, needs=needs[1].strip() if needs else "")


def _commands(block: Block) -> Iterator[Step]:
    command, shown, line = "", "", block.line
    for number, text in enumerate(block.text.splitlines(), block.line + 1):
        if text.startswith("$ "):
            if command:
                yield _command(command, shown, line)
            command, shown, line = text[2:], "", number
        elif text.startswith("> ") and command and not shown:
            command += "\n" + text[2:]
        elif not command:
            raise ValueError(f"line {number}: a console block begins with a command, '$ ...'; this is {text!r}")
        else:
            shown += text + "\n"
    if not command:
        raise ValueError(f"line {block.line}: a console block without a command")
    yield _command(command, shown, line)


def _command(text: str, shown: str, line: int) -> Step:
    needs, exits = _NEEDS.search(text), re.search(r"# exits (\d+)", text)
    return Step("command", text, line, "", shown, needs[1].strip() if needs else "", int(exits[1]) if exits else 0)


def links(text: str) -> list[str]:
    """Targets of the links of a page, outside of code."""
    bare = re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))
    return re.findall(r"\]\(([^)\s]+)\)", bare)


def anchors(text: str) -> set[str]:
    """The names of a page's headings as GitHub makes them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", _FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = next(i for i in range(99) if (f"{name}-{i}" if i else name) not in found)
        found.add(f"{name}-{number}" if number else name)
    return found
