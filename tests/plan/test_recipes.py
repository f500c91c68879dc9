"""The recipes of 7 B and more: each fits the cards it names with room to spare, and says what its plan says.

`UPDATE_GOLDEN=1 pytest tests/plan/test_recipes.py` writes the plans into their files in experiments/ and docs/memory.md anew.
"""

from __future__ import annotations

import ast
import functools
import os
import re
from pathlib import Path

import pytest

from forgather_dsl.dsl.load import experiments_in, load_file
from forgather_dsl.plan.hardware import GIB, parse
from forgather_dsl.plan.prediction import Run, predict

ROOT = Path(__file__).parents[2]
FILES, PAGE = [ROOT / "experiments" / f"{name}.py" for name in ("llama7b", "finetune")], ROOT / "docs" / "memory.md"
LIMIT_GIB = 21.5  # of 24: what allocator and context might take beside the plan
FOUND = {
    cls.__name__: (cls, file)
    for file in FILES
    for cls in experiments_in(load_file(str(file)))
    if not cls.__abstract__ and cls().model.dim > 1000
}
RECIPES = {name: cls for name, (cls, _) in FOUND.items()}
UPDATE = bool(os.environ.get("UPDATE_GOLDEN"))
EXPLAINED = ("Llama31PP4", "Llama31OneCard", "Llama31OneCardHost")


@functools.cache
def planned(name: str) -> Run:
    experiment = RECIPES[name]()
    return predict(experiment, parse(experiment.hardware))


def host_gib(run: Run) -> float:
    return sum(rank.host for rank in run.memory.ranks) / GIB


def in_words(run: Run) -> str:
    """GiB of each rank and of the host, tokens per second to the nearest ten."""
    ranks = ", ".join(f"{rank.total / GIB:.1f}" for rank in run.memory.ranks)
    host = f" and {host_gib(run):.0f} of the host's" if host_gib(run) >= 0.5 else ""
    assert run.tokens_per_second is not None
    return f"Plan: {ranks} GiB{host}; {round(run.tokens_per_second, -1):,.0f} tokens/s."


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_its_plan_says(name):
    if UPDATE:
        _write_docstring(name, in_words(planned(name)))
    (node,) = [n for n in ast.parse(FOUND[name][1].read_text()).body if isinstance(n, ast.ClassDef) and n.name == name]
    assert (ast.get_docstring(node) or "").endswith(in_words(planned(name)))


def _write_docstring(name: str, plan: str) -> None:
    """After what the class says of itself: on the same line where there is room."""
    file = FOUND[name][1]
    text = file.read_text()
    found = re.search(rf'^class {name}\(.*?\n    """(.*?)"""', text, re.DOTALL | re.MULTILINE)
    assert found, name
    said = " ".join(found[1].partition("Plan:")[0].split())
    one_line = f"{said} {plan}"
    lines = one_line if len(one_line) <= 120 - 10 else f"{said}\n\n    {plan}\n    "
    file.write_text(text[: found.start(1)] + lines + text[found.end(1) :])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_with_room_to_spare(name):
    run = planned(name)
    assert run.fits
    assert len(run.memory.ranks) == len(parse(run.experiment.hardware).devices)
    assert max(rank.total for rank in run.memory.ranks) <= LIMIT_GIB * GIB


def test_the_tables_are_the_plans():
    """Of all recipes, and where the memory of three of them goes."""
    head = ("recipe", "cards", "tokens a sequence", "optimizer, update", "GiB a rank", "host GiB", "tokens/s")
    tables = {"recipes": _table(head, [_row(name) for name in RECIPES])}
    kinds = list(planned("Llama31PP4").memory.ranks[0].kinds())
    tables["kinds"] = _table(("recipe", *kinds, "GiB"), [_kinds(name) for name in EXPLAINED])
    for name, table in tables.items():
        between = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if UPDATE:
            PAGE.write_text(between.sub(lambda found, table=table: found[1] + table + found[2], PAGE.read_text()))
        found = between.search(PAGE.read_text())
        assert found
        assert found[0] == f"<!-- {name} -->\n{table}<!-- /{name} -->"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _kinds(name: str) -> tuple[str, ...]:
    fullest = max(planned(name).memory.ranks, key=lambda rank: rank.total)
    sizes = [f"{size / GIB:.2f}" for size in fullest.kinds().values()]
    return f"`{name}`", *sizes, f"{fullest.total / GIB:.2f}"


def _row(name: str) -> tuple[str, ...]:
    run = planned(name)
    experiment = run.experiment
    how = f"`{experiment.optimizer!r}`, `{experiment.update!r}`"
    ranks = ", ".join(f"{rank.total / GIB:.1f}" for rank in run.memory.ranks)
    host = f"{host_gib(run):.0f}" if host_gib(run) >= 0.5 else ""
    rate = f"{round(run.tokens_per_second or 0, -1):,.0f}"
    return f"`{name}`", experiment.hardware, f"{experiment.seq_len:,}", how, ranks, host, rate
