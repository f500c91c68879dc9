"""A small twin of a model too large to be tried here: the same code with other numbers, so that trying one tries the other."""

from __future__ import annotations

import ast
from typing import Any

import codegen

from ..dsl import Cycle, Lazy, replace
from ..plan.smoke import few_layers, model_sizes
from ..specs import Llama, SlidingWindow

LONGEST = 8  # tokens of the widest window
VOCAB = 211


def twin_of(model: Lazy[Any]) -> Lazy[Any] | None:
    """The model with few layers and small sizes in the same proportions; None for one whose sizes are not known here."""
    if not isinstance(model, Llama):
        return None
    widest = max((window for window in _windows(model.attention)), default=LONGEST)
    sizes = model_sizes(model, few_layers(model, 2), min(1.0, LONGEST / widest))
    return replace(model, **sizes, vocab_size=min(VOCAB, model.vocab_size))


def same_code(one: codegen.Source, other: codegen.Source) -> bool:
    """Whether two emitted files differ in their headers and in the numbers that the model is built with alone."""
    return code_of(one) == code_of(other)


def code_of(source: codegen.Source) -> str:
    """The text without its header, with 0 for every number in the build function and for every width of a window."""
    lines = source.text.split("\n")
    tree = ast.parse(source.text)
    build = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == source.build)
    numbers = [node for node in ast.walk(build) if _is_number(node)]
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg == "window"]
    numbers += [node.value for node in keywords if _is_number(node.value)]
    places = {(node.lineno, node.col_offset, node.end_col_offset) for node in numbers}  # type: ignore[attr-defined]
    for line, start, end in sorted(places, reverse=True):
        text = lines[line - 1].encode()
        lines[line - 1] = (text[:start] + b"0" + text[end:]).decode()
    first = tree.body[1].lineno - 1 if ast.get_docstring(tree) is not None else 0
    return "\n".join(lines[first:])


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool)


def _windows(attention: Any) -> list[int]:
    if isinstance(attention, Cycle):  # type: ignore[arg-type]  # to type checkers it is a function
        return [window for option in attention.options for window in _windows(option)]
    return [attention.window] if isinstance(attention, SlidingWindow) else []
