"""What `compile = True` does to a layer's forward and its split backward: our deferred layers, compiled beside as written.

`python benchmarks/test_compiled_layers.py [ROUNDS]` prints the table. Times are CPU time of the process with one thread; every
round runs all four ways in turn, and a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import pytest
import torch

from benchmarks.test_split_backward import Deferred, Shape
from forgather_dsl.parallel.compiled import compiled_layer, run_layer

SHAPES = [Shape(256, 256, 4, 1), Shape(512, 256, 2, 4)]
PARTS = {"B": ("B",), "I+W": ("I", "W")}


def ways(shape: Shape) -> dict[tuple[str, str], Deferred]:
    """(how, parts) to a way of running a microbatch, warm: what there is to compile is compiled."""
    found = {}
    for how, call in (("written", run_layer), ("compiled", compiled_layer())):
        for name, parts in PARTS.items():
            way = Deferred(shape, parts, deferred=True)
            net: Any = way.net

            def through(x: torch.Tensor, net: Any = net, call: Any = call) -> torch.Tensor:
                for layer in net.layers:
                    x = call(layer, x, net.context)
                return x

            net.run = through
            for _ in range(2):
                way()
            found[how, name] = way
    return found


def table(rounds: int) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    yield "| | F | B | I+W | compiled F | B | I+W | compiled F+B / F+B | (I+W)/B | compiled (I+W)/B | seconds to compile |"
    yield "|---" * 11 + "|"
    for shape in SHAPES:
        start = time.process_time()
        every = ways(shape)
        seconds = time.process_time() - start
        runs: list[dict[Any, dict[str, float]]] = [{key: way() for key, way in every.items()} for _ in range(rounds)]

        def back(run: Any, how: str, name: str) -> float:
            return sum(run[how, name][part] for part in PARTS[name])

        def ratio(over: Any, under: Any, runs: Any = runs) -> str:
            return f"{median(over(run) / under(run) for run in runs):.2f}"

        cells = [str(shape)]
        for how in ("written", "compiled"):
            cells.append(f"{1e3 * median(run[how, 'B']['F'] for run in runs):.1f}")
            cells += [f"{1e3 * median(back(run, how, name) for run in runs):.1f}" for name in PARTS]
        cells.append(
            ratio(
                lambda run: run["compiled", "B"]["F"] + back(run, "compiled", "B"),
                lambda run: run["written", "B"]["F"] + back(run, "written", "B"),
            )
        )
        for how in ("written", "compiled"):
            cells.append(ratio(lambda r, h=how: back(r, h, "I+W"), lambda r, h=how: back(r, h, "B")))
        yield "| " + " | ".join([*cells, f"{seconds:.0f}"]) + " |"


@pytest.mark.benchmark(group="compiled layers")
@pytest.mark.parametrize("how", ["written", "compiled"])
def test_a_step(benchmark: Any, how: str) -> None:
    """Forward and full backward of d256 T256, four layers."""
    torch.set_num_threads(1)
    benchmark.pedantic(ways(SHAPES[0])[how, "B"], rounds=15, warmup_rounds=2)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for line in table(int(sys.argv[1]) if len(sys.argv) > 1 else 25):
        print(line, flush=True)
