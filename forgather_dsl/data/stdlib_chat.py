"""`StdlibChat`: questions about Python's own library, answered with the first paragraph of a docstring.

One conversation for each few functions and classes of a module, in the order of its source. Nothing is imported: the
docstrings are read off the syntax tree. It is for trying out finetuning where nothing may be downloaded.
"""

from __future__ import annotations

import ast
import os
import warnings
from collections.abc import Iterator
from typing import Any

from forgather_dsl.data.chat_source import ChatSource, Faults, Record
from forgather_dsl.data.sources import Stdlib, read_python

__all__ = ["StdlibChat"]

TURNS = 3  # questions in a conversation
ANSWER = 400  # characters; longer docstrings are no answers


class StdlibChat(ChatSource):
    """Conversations about the modules of `Stdlib`."""

    def records(self, faults: Faults) -> Iterator[Record]:
        """One after the other, module by module."""
        for file in self._corpus().corpus()[1]:
            module = os.path.splitext(os.path.basename(file.path))[0]
            said = list(_questions(read_python(file.path) or "", module))
            for first in range(0, len(said), TURNS):
                messages = [message for pair in said[first : first + TURNS] for message in pair]
                yield {"messages": messages}, f"{file.path}: question {first + 1}"

    def _corpus(self) -> Stdlib:
        return Stdlib(split=self.split, held_out=self.held_out)

    def check(self) -> None:
        """Raises: UserError: no Python source on this machine."""
        self._corpus().check()

    def identity(self) -> dict[str, Any]:
        """The library's files, and how they are read."""
        return {**self._corpus().identity(), "source": "StdlibChat", "turns": TURNS, "answer": ANSWER, **self.facts()}

    def __str__(self) -> str:
        return f"questions about {self._corpus().corpus()[0]} ({self.described_split()})"


def _questions(source: str, module: str) -> Iterator[list[dict[str, str]]]:
    """Question and answer of each public function, class and method with a docstring."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in old source
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for name, node in _named(tree, module):
        answer = (ast.get_docstring(node) or "").partition("\n\n")[0].strip()
        if answer and len(answer) <= ANSWER:
            what = "class" if isinstance(node, ast.ClassDef) else "function"
            yield [
                {"role": "user", "content": f"What does the {what} {name} do?"},
                {"role": "assistant", "content": answer},
            ]


def _named(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield f"{path}.{child.name}", child
            if isinstance(child, ast.ClassDef):
                yield from _named(child, f"{path}.{child.name}")
