"""The parts of the tracer that handle text: edits, line breaks, bytes of nodes, names and their order."""

from __future__ import annotations

import ast

import pytest

from codegen import edits
from codegen.keys import Import, Marks, Unit
from codegen.layout import tidy
from codegen.modules import STRING_BREAK, Text, notice
from codegen.reflow import reflowed


def call_without(source: str, *gone: int) -> str:
    """A call without some of its arguments."""
    text = Text(source)
    node = ast.parse(source, mode="eval").body
    assert isinstance(node, ast.Call)
    floor = source.index("(") + 1
    items = sorted([*node.args, *node.keywords], key=lambda a: (a.lineno, a.col_offset))
    ranges = [edits.whole_range(text, item, floor) for item in items]
    changes = edits.without(text, ranges, set(gone), len(source) - 1)
    return edits.applied(text, 0, len(text.data), changes)


@pytest.mark.parametrize(
    ("source", "gone", "left"),
    [
        ("f(a, b, c)", (0,), "f(b, c)"),
        ("f(a, b, c)", (1,), "f(a, c)"),
        ("f(a, b, c)", (2,), "f(a, b)"),
        ("f(a, b, c)", (1, 2), "f(a)"),
        ("f(a, b=1, c=2)", (0, 1, 2), "f()"),
        ("f((a), (b))", (1,), "f((a))"),
        ("f(\n    a,\n    b=é,\n    c=2,\n)", (1,), "f(\n    a,\n    c=2,\n)"),
        ("f(\n    a,\n    b=1,\n)", (1,), "f(\n    a,\n)"),
    ],
)
def test_arguments_leave_with_their_commas(source, gone, left):
    assert call_without(source, *gone) == left


def test_two_changes_of_the_same_bytes_are_an_error():
    with pytest.raises(edits.Overlap):
        edits.applied(Text("a + b\n"), 0, 5, [(0, 3, "x"), (2, 5, "y")])


@pytest.mark.parametrize(
    ("source", "grouped"),
    [("x = (a)\n", True), ("f(a)\n", False), ("not (a)\n", True), ("x[0](a)\n", False), ("(a).b\n", True)],
)
def test_only_grouping_parentheses_belong_to_an_expression(source, grouped):
    text = Text(source)
    node = next(n for n in ast.walk(text.tree) if isinstance(n, ast.Name) and n.id == "a")
    assert (edits.grouping(text, text.start(node), text.end(node)) is not None) is grouped


def test_line_breaks_in_strings_are_told_from_those_between_lines():
    text = Text('if x:\n    a = """1\n    2"""\n    b = 1\n')
    inner = text.slice(0, len(text.data))
    assert inner.count(STRING_BREAK) == 1
    moved = edits.reindented(inner[6:], "    ", "")
    assert moved.replace(STRING_BREAK, "\n") == 'a = """1\n    2"""\nb = 1\n'


def test_bytes_of_nodes_behind_letters_of_several_bytes():
    text = Text("é = 'ü'; name = é\n")
    assert [text.source(n) for n in ast.walk(text.tree) if isinstance(n, ast.Name)] == ["é", "name", "é"]


LONG = "value = function(" + ", ".join(f"argument_{i}" for i in range(12)) + ")"


@pytest.mark.parametrize(
    ("source", "laid_out"),
    [
        ("f(\n    a, b\n)\n", "f(a, b)\n"),  # fits
        ("f(\n    a,\n    b,\n)\n", "f(\n    a,\n    b,\n)\n"),  # the comma keeps it open
        ("f(\n    g(\n        a, b\n    ),\n    c,\n)\n", "f(\n    g(a, b),\n    c,\n)\n"),
        ("f(\n    'a' 'b'\n)\n", "f(\n    'a' 'b'\n)\n"),  # implicit concatenation is left alone
        ("f(  # why\n    a, b\n)\n", "f(  # why\n    a, b\n)\n"),
    ],
)
def test_changed_statements_are_broken_anew(source, laid_out):
    assert reflowed(source, set()) == laid_out


def test_long_lines_are_opened_up_and_known_lines_are_not_touched():
    opened = reflowed(f"{LONG}\n", set()).split("\n")
    assert max(map(len, opened)) <= 120
    assert ast.dump(ast.parse("\n".join(opened))) == ast.dump(ast.parse(LONG))
    assert reflowed("f(\n    a, b\n)\n", {"f(", "a, b", ")"}) == "f(\n    a, b\n)\n"


@pytest.mark.parametrize(
    "line",
    [
        "value = table[" + " + ".join(f"argument_{i}" for i in range(12)) + "]",
        "value = (" + " + ".join(f"argument_{i}" for i in range(12)) + ").item",
        "value = sum(argument_of_a_long_name for argument_of_a_long_name in another_argument_of_a_long_name if argument_of_a_long_name)",
        "value = function(lambda argument_1, argument_2: argument_1 + argument_2, "
        + ", ".join(f"argument_{i}" for i in range(9))
        + ")",
    ],
)
def test_opening_up_never_changes_what_a_line_means(line):
    assert ast.dump(ast.parse(reflowed(f"{line}\n", set()))) == ast.dump(ast.parse(line))


def test_marks_are_found_in_the_order_of_use_and_filled():
    marks = Marks()
    outer, inner, torch = Unit("m", "Outer"), Unit("m", "Inner"), Import("torch")
    text = f"x = {marks.mark(outer, True)}(part={marks.mark(inner, False)}(), t={marks.mark(torch, True)})"
    assert marks.ordered(text) == [inner, torch, outer]
    assert marks.keys(text, hard_only=True) == [outer, torch]
    assert marks.fill(text, {outer: "A", inner: "B", torch: "torch"}) == "x = A(part=B(), t=torch)"


def test_blank_lines_that_a_cut_leaves_behind_go():
    assert tidy("class A:\n\n    x = 1\n\n\n    y = 2\n\n") == "class A:\n    x = 1\n\n    y = 2"


def test_licences_are_kept_and_other_comments_at_the_head_are_not():
    head = "# Copyright 2020 The Authors\n# under a licence\n"
    assert notice(f'# coding: utf-8\n\n{head}\n"""Says\n# Copyright in a string."""\nimport torch\n') == head.strip()
    assert notice("import torch\n# Copyright 2021\n") == ""
