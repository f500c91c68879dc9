"""The table of docs/choosing.md: every figure is what the planner says today."""

from __future__ import annotations

import re

import pytest
from doc_pages import ROOT

from forgather_dsl.dsl import load, replace
from forgather_dsl.plan.hardware import parse
from forgather_dsl.plan.strategies import compared
from forgather_dsl.plan.verdicts import strategies_of

BATCHES = (8, 16, 64)
CELL = re.compile(r"([\d,]+) : ([\d,]+) \(([\d,]+)\.\.([\d,]+)\)")


def written() -> dict[tuple[str, int], tuple[int, ...]]:
    """(link, sequences) and the four numbers of each cell."""
    found: dict[tuple[str, int], tuple[int, ...]] = {}
    for line in (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8").splitlines():
        link, cells = line.strip("| ").split(" | ")[0], CELL.findall(line)
        for batch, cell in zip(BATCHES, cells):
            found[link, batch] = tuple(int(number.replace(",", "")) for number in cell)
    return found


def planned(link: str, batch: int) -> tuple[int, ...]:
    """The same, from the planner."""
    text = f"4xRTX4090,link={link}GB/s"
    experiment = replace(load(f"{ROOT}/experiments/llama7b.py:PP4OneFOneB")(), batch_size=batch, hardware=text)
    rows = [row for row in strategies_of(compared(experiment, 4, parse(text))) if row["fits"]]
    piped = max(row["tokens_per_second"] for row in rows if row["family"].startswith("Pipeline"))
    sharded = max((r for r in rows if r["family"] == "FSDP2"), key=lambda row: row["tokens_per_second"])
    names = ("tokens_per_second", "tokens_per_second_none", "tokens_per_second_perfect")
    return round(piped), *(round(sharded[name]) for name in names)


def test_every_cell_is_there():
    assert set(written()) == {(link, batch) for link in ("1.1", "3", "6", "12", "25") for batch in BATCHES}


@pytest.mark.slow
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("link", ["1.1", "6", "25"])
def test_a_cell_is_what_the_planner_says(link, batch):
    assert written()[link, batch] == pytest.approx(planned(link, batch), rel=0.005)
