"""What splitting a backward costs: I + W beside the full backward B, for our deferred weight gradients and for torch's own split.

`python benchmarks/test_split_backward.py [ROUNDS [PROCESSES [plain|checkpointed|compiled ...]]]` prints the table; freed memory
is kept, as in every run on a CPU, unless MALLOC_ variables are set. Times are CPU time of the process with one thread. Every
round runs every way in turn, two microbatches each of which the second counts. A ratio is the median of the ratios of all
rounds, with the least and the largest of the medians of single processes. "torch" is torch.distributed.pipelining's
stage_backward_input and stage_backward_weight on the same layers.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from statistics import median
from typing import Any, NamedTuple

import pytest
import torch
import torch._functorch.config as functorch
import torch.nn as nn
from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight
from torch.utils.checkpoint import checkpoint

from forgather_dsl import Llama
from forgather_dsl.dsl import build
from forgather_dsl.parallel.deferred import defer
from forgather_dsl.parallel.host_allocator import keep_freed_memory
from forgather_dsl.parallel.weight_gradients import WeightGradients


class Shape(NamedTuple):
    """Layers of a Llama, without embedding and head: a stage in the middle of a pipeline."""

    dim: int
    seq: int
    layers: int
    batch: int
    how: str = ""  # "", "checkpointed", "compiled"

    def __str__(self) -> str:
        return f"d{self.dim} T{self.seq} {self.layers} layers mb{self.batch} {self.how}".strip()


SHAPES = [
    Shape(256, 256, 1, 1),
    Shape(256, 256, 4, 1),
    Shape(512, 256, 1, 1),
    Shape(512, 256, 4, 1),
    Shape(512, 256, 2, 4),
    Shape(256, 256, 4, 1, "checkpointed"),
    Shape(512, 256, 2, 4, "checkpointed"),
    Shape(256, 256, 2, 1, "compiled"),
    Shape(512, 256, 2, 1, "compiled"),
]


class Layers(nn.Module):
    """The layers in turn; counts how often their forwards run."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        torch.manual_seed(0)
        heads, ffn = shape.dim // 64, shape.dim * 8 // 3 // 64 * 64
        spec = Llama(dim=shape.dim, num_layers=shape.layers, num_heads=heads, ffn_dim=ffn, vocab_size=64)
        model: Any = build(spec)
        self.layers, self.how, self.num_forwards = model.layers, shape.how, 0
        self.context = model.context(shape.seq, 0, None, "cpu")
        for parameter in self.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self.run: Callable[..., Any] = torch.compile(self.through) if shape.how == "compiled" else self.through

    def through(self, x: torch.Tensor) -> torch.Tensor:
        """One after the other."""
        for layer in self.layers:
            x = layer(x, self.context, None)
        return x

    def one(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """A single layer, counted."""
        self.num_forwards += 1
        return layer(x, self.context, None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, dim]` to the same."""
        if self.how != "checkpointed":
            return self.run(x)
        for layer in self.layers:
            x = checkpoint(self.one, layer, x, use_reentrant=False)  # type: ignore[assignment]
        return x


class Way:
    """One way to run a microbatch; a call returns the CPU seconds of its parts, by name."""

    def __init__(self, shape: Shape, parts: tuple[str, ...], deferred: bool) -> None:
        self.parts, self.net = parts, Layers(shape)
        self.gradients = defer(self.net) if deferred else WeightGradients()
        size = (shape.batch, shape.seq, shape.dim)
        self.x, self.gradient = torch.randn(size), torch.randn(size)
        self.forwards: dict[str, int] = {}

    def __call__(self) -> dict[str, float]:
        x = self.x.clone().requires_grad_()
        seconds = {}
        todo = self._parts(x)
        for part in ("F", *self.parts):
            self.net.num_forwards = 0
            start = time.process_time()
            next(todo)
            seconds[part] = time.process_time() - start
            self.forwards[part] = self.net.num_forwards
        return seconds

    def _parts(self, x: torch.Tensor) -> Iterator[None]:
        raise NotImplementedError


class Autograd(Way):
    """F, then autograd's full backward (B)."""

    def _parts(self, x: torch.Tensor) -> Iterator[None]:
        y = self.net(x)
        yield
        torch.autograd.backward(y, self.gradient)
        yield


class Torch(Way):
    """F, then torch's own I and W."""

    def _parts(self, x: torch.Tensor) -> Iterator[None]:
        y = self.net(x)
        yield
        _, groups = stage_backward_input([y], [self.gradient], [x], self.net.parameters())
        yield
        stage_backward_weight(self.net.parameters(), groups)
        yield


class Deferred(Way):
    """F, then our B, or I and W."""

    def _parts(self, x: torch.Tensor) -> Iterator[None]:
        self.gradients.deferring = "I" in self.parts
        y = self.net(x)
        yield
        torch.autograd.backward(y, self.gradient)
        owed = self.gradients.take()
        yield
        WeightGradients.settle(owed)
        yield


class Measured(NamedTuple):
    """What one process has measured."""

    rounds: list[dict[tuple[str, str], float]]
    """CPU seconds by way and part."""
    forwards: dict[str, tuple[int, int]]
    """By way, how often a layer's forward ran in I and in W."""


def measure(shape: Shape, rounds: int) -> Measured:
    """Interleaved rounds of autograd's B, torch's I and W, our B, our I and W."""
    torch.set_num_threads(1)
    keep_freed_memory()
    gc.freeze()
    functorch.donated_buffer = False  # torch's I keeps its graph, which a compiled backward otherwise refuses
    ways: dict[str, Way] = {
        "autograd": Autograd(shape, ("B",), deferred=False),
        "torch": Torch(shape, ("I", "W"), deferred=False),
        "ours, full": Deferred(shape, ("B",), deferred=True),
        "ours": Deferred(shape, ("I", "W"), deferred=True),
    }
    for way in ways.values():
        for _ in range(2):  # compiles, allocates
            way()
    found = []
    for turn in range(rounds):
        one = {}
        for name in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
            ways[name]()  # in a step, too, it is the microbatch before that has left its traces in the caches
            gc.collect()  # what torch's split has left, which Python would else look through in our I
            one |= {(name, part): seconds for part, seconds in ways[name]().items()}
        found.append(one)
    split = {name: way.forwards for name, way in ways.items() if "I" in way.parts}
    return Measured(found, {name: (n["I"] // shape.layers, n["W"] // shape.layers) for name, n in split.items()})


COLUMNS = ("autograd F", "autograd B", "torch I", "torch W", "ours F", "ours, full B", "ours I", "ours W")
RATIOS = (("torch", "autograd"), ("ours", "autograd"), ("ours", "ours, full"))


def ratio(found: list[Measured], name: str, full: str) -> str:
    """I + W of one way to B of another: the median of all rounds, and the least and largest median of a process."""
    each = [[(one[name, "I"] + one[name, "W"]) / one[full, "B"] for one in process.rounds] for process in found]
    medians = [median(process) for process in each]
    return f"{median(x for process in each for x in process):.3f} ({min(medians):.2f} to {max(medians):.2f})"


def table(rounds: int, processes: int, shapes: list[Shape]) -> Iterator[str]:
    """Lines of the table, as they are measured. Each process is a new one: where memory lies changes a ratio by percents."""
    heads = "torch (I+W)/B", "ours (I+W)/B", "ours / our B", "forwards in I, W: torch", "ours"
    yield "| " + " | ".join(("ms", *COLUMNS, *heads)) + " |"
    yield "|---" * (len(COLUMNS) + len(heads) + 1) + "|"
    for shape in shapes:
        found = []
        for _ in range(processes):
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                found.append(pool.submit(measure, shape, rounds).result())
        every = [one for process in found for one in process.rounds]
        keys: list[Any] = [column.rsplit(" ", 1) for column in COLUMNS]
        cells = [str(shape), *(f"{1e3 * median(one[name, part] for one in every):.1f}" for name, part in keys)]
        cells += [ratio(found, *pair) for pair in RATIOS]
        counted = shape.how == "checkpointed"
        cells += ["{}, {}".format(*found[0].forwards[name]) if counted else "" for name in ("torch", "ours")]
        yield "| " + " | ".join(cells) + " |"


@pytest.mark.benchmark(group="backward of d256 T256 4 layers")
@pytest.mark.parametrize(
    ("kind", "parts", "deferred"),
    [(Autograd, ("B",), False), (Torch, ("I", "W"), False), (Deferred, ("B",), True), (Deferred, ("I", "W"), True)],
    ids=["autograd B", "torch I+W", "deferred B", "deferred I+W"],
)
def test_backward(benchmark: Any, kind: type[Way], parts: tuple[str, ...], deferred: bool) -> None:
    """Forward included in every one."""
    torch.set_num_threads(1)
    keep_freed_memory()
    benchmark.pedantic(kind(SHAPES[1], parts, deferred), rounds=15, warmup_rounds=2)


if __name__ == "__main__":
    counts, kinds = [int(word) for word in sys.argv[1:3]], sys.argv[3:]
    num_rounds, num_processes = counts + [15, 5][len(counts) :]
    for line in table(num_rounds, num_processes, [s for s in SHAPES if not kinds or (s.how or "plain") in kinds]):
        print(line, flush=True)
