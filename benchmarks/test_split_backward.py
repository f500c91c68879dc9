"""What splitting a backward costs: I + W beside the full backward B, for our deferred weight gradients and for torch's own split.

`python benchmarks/test_split_backward.py [ROUNDS]` prints the table; freed memory is kept, as in every run on a CPU, unless
MALLOC_ variables are set. Times are CPU time of the process with one thread. Every round runs every way in turn, two
microbatches each of which the second counts. A ratio is given twice: the median of the ratios of the rounds, and that of the
least times, as what else the machine does can only add to a time. "torch" is torch.distributed.pipelining's
stage_backward_input and stage_backward_weight on the same layers.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
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
from forgather_dsl.parallel.deferred import WeightGradients, defer
from forgather_dsl.parallel.host_allocator import keep_freed_memory


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


class Row(NamedTuple):
    """Median milliseconds per part, ratios (of the median round, of the least times), and forwards of a layer in I and in W."""

    milliseconds: dict[str, float]
    torch_ratio: tuple[float, float]
    ratio: tuple[float, float]  # of our I + W to autograd's B
    own_ratio: tuple[float, float]  # of our I + W to our B
    forwards: tuple[int, int]
    torch_forwards: tuple[int, int]


def measure(shape: Shape, rounds: int) -> Row:
    """Interleaved rounds of autograd's B, torch's I and W, our B, our I and W."""
    keep_freed_memory()
    gc.freeze()
    torch._dynamo.reset()
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
    milliseconds = {
        f"{name} {part}": 1e3 * median(one[name, part] for one in found)
        for name in ways
        for part in ("F", *ways[name].parts)
    }

    def ratio(name: str, full: str) -> tuple[float, float]:
        split, whole = [one[name, "I"] + one[name, "W"] for one in found], [one[full, "B"] for one in found]
        return median(x / y for x, y in zip(split, whole, strict=True)), min(split) / min(whole)

    def forwards(way: Way) -> tuple[int, int]:
        return way.forwards["I"] // shape.layers, way.forwards["W"] // shape.layers

    return Row(
        milliseconds,
        ratio("torch", "autograd"),
        ratio("ours", "autograd"),
        ratio("ours", "ours, full"),
        forwards(ways["ours"]),
        forwards(ways["torch"]),
    )


COLUMNS = ("autograd F", "autograd B", "torch I", "torch W", "ours F", "ours, full B", "ours I", "ours W")


def table(rounds: int) -> Iterator[str]:
    """Lines of the table, as they are measured."""
    heads = "torch (I+W)/B", "ours (I+W)/B", "ours / our B", "forwards in I, W: torch", "ours"
    yield "| " + " | ".join(("ms", *COLUMNS, *heads)) + " |"
    yield "|---" * (len(COLUMNS) + len(heads) + 1) + "|"
    for shape in SHAPES:
        row = measure(shape, rounds)
        cells = [str(shape), *(f"{row.milliseconds[name]:.1f}" for name in COLUMNS)]
        cells += ["{:.2f}, {:.2f}".format(*pair) for pair in (row.torch_ratio, row.ratio, row.own_ratio)]
        counted = shape.how == "checkpointed"
        cells += ["{}, {}".format(*n) if counted else "" for n in (row.torch_forwards, row.forwards)]
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
    torch.set_num_threads(1)
    for line in table(int(sys.argv[1]) if len(sys.argv) > 1 else 25):
        print(line, flush=True)
