"""What the search for an order brings and what it takes: bubble beside the best drawn schedule and the bound, and seconds.

`python benchmarks/test_search.py` prints the table. Bubbles are of the busiest rank, simulated, so the same on every machine;
seconds are CPU time of this process. Costs as in tests/plan/test_search.py: those of one rank, divided evenly into its stages.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from forgather_dsl.plan.costs import Costs
from forgather_dsl.plan.schedules import drawn, simulate, to_and_fro
from forgather_dsl.plan.search import lower_bound, search

PLAIN, RECOMPUTING = (1.0, 0.75), (0.06, 0.75)  # what a rank keeps of a microbatch from F to I, and from I to W


class Case(NamedTuple):
    """A pipeline: stages per rank in a V, seconds of F, I and W, memory in microbatches of a rank, seconds of a message."""

    ranks: int
    chunks: int
    microbatches: int
    times: tuple[float, float, float] = (1.0, 1.0, 1.0)
    kept: tuple[float, float] = PLAIN
    room: float = 4.26
    hop: float = 0.0

    @property
    def costs(self) -> Costs:
        """Of every stage."""
        stages = self.ranks * self.chunks
        f, i, w, kept, owed = ((x / self.chunks,) * stages for x in (*self.times, *self.kept))
        latency = 0.003 if self.hop else 0.0
        return Costs(f, i, w, kept, owed, (0.0,) * stages, (self.room,) * self.ranks, latency, self.hop)

    @property
    def placement(self) -> tuple[int, ...]:
        """Rank of each stage."""
        return to_and_fro(self.ranks, self.chunks)


CASES = {
    "F = I = W, memory of 1F1B": Case(4, 2, 8),
    "cheap W, memory of 1F1B": Case(4, 2, 16, (1, 1, 0.67), hop=0.02),
    "cheap W, twice the memory": Case(4, 2, 16, (1, 1, 0.67), room=8.26, hop=0.02),
    "recomputing, 1.3 microbatches": Case(4, 2, 16, (1, 2, 0.8), RECOMPUTING, 1.31, 0.02),
    "recomputing, one stage on each rank": Case(4, 1, 16, (1, 2, 0.8), RECOMPUTING, 4.01, 0.02),
    "8 ranks, cheap W, memory of 1F1B": Case(8, 2, 16, (1, 1, 0.67), room=8.26, hop=0.04),
    "8 ranks, recomputing, half of that": Case(8, 2, 16, (1, 2, 0.8), RECOMPUTING, 4.01, 0.04),
    "8 ranks, 32 microbatches": Case(8, 2, 32, (1, 1, 0.67), room=8.26, hop=0.04),
}


def find(case: Case) -> float:
    """Makespan of the order found, seconds; nothing is taken from or left in the user's cache."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setitem(os.environ, "FORGATHER_CACHE", folder)
        named = drawn(case.placement, case.microbatches)
        return simulate(search(case.costs, case.placement, case.microbatches, named), case.costs).makespan


def best_drawn(case: Case) -> float:
    """Makespan of the best schedule drawn by hand within the memory; infinite if none is."""
    found = (simulate(one, case.costs) for one in drawn(case.placement, case.microbatches))
    return min((result.makespan for result in found if result.fits), default=float("inf"))


def table() -> Iterator[str]:
    """Lines, as they are found."""
    yield "| costs | ranks x stages | microbatches | best drawn, bubble % | searched | bound | seconds |"
    yield "|---" * 7 + "|"
    for name, case in CASES.items():
        work = case.microbatches * sum(case.times)
        start = time.process_time()
        searched = find(case)
        seconds = time.process_time() - start
        bound = lower_bound(case.costs, case.placement, case.microbatches)
        by_hand = best_drawn(case)
        drawn_ = "none fits" if by_hand == float("inf") else f"{100 * (1 - work / by_hand):.1f}"
        found = [f"{100 * (1 - work / x):.1f}" for x in (searched, bound)]
        yield f"| {name} | {case.ranks} x {case.chunks} | {case.microbatches} | {drawn_} | {' | '.join(found)} | {seconds:.1f} |"


@pytest.mark.benchmark(group="search for an order, 4 ranks in a V, 16 microbatches")
def test_search(benchmark: Any) -> None:
    """Of a step that starts from every drawn schedule."""
    benchmark.pedantic(find, [CASES["cheap W, memory of 1F1B"]], rounds=3)


if __name__ == "__main__":
    for line in table():
        print(line, flush=True)
