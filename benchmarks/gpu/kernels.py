"""Parts of the check that time a piece: the machine, split backward, saving beside training, decoding, measured profiles."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from report import Report

from forgather_dsl import Llama
from forgather_dsl.dsl import build
from forgather_dsl.parallel.deferred import defer
from forgather_dsl.parallel.weight_gradients import WeightGradients
from forgather_dsl.train.repeatable import repeatable

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16


def seconds(work: Callable[[], Any], times: int = 5) -> float:
    """The median, after one call that warms up."""
    found = []
    for number in range(times + 1):
        _settle()
        start = time.perf_counter()
        work()
        _settle()
        if number:
            found.append(time.perf_counter() - start)
    return statistics.median(found)


def _settle() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def machine(report: Report) -> None:
    """What there is, and the ceilings that other figures are read against."""
    import platform

    size, wide = (256, 1 << 16) if report.small else (8192, 1 << 30)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    one = torch.empty(wide, dtype=torch.uint8, device=DEVICE)
    host = torch.ones(wide // 4, dtype=torch.uint8, pin_memory=DEVICE.type == "cuda")
    plain, part = torch.ones(wide // 4, dtype=torch.uint8), one[: wide // 4]
    draws = torch.empty(wide >> 4, dtype=torch.float32)
    report.row(
        torch=torch.__version__,
        python=platform.python_version(),
        device=torch.cuda.get_device_name() if DEVICE.type == "cuda" else "cpu",
        used_gib=report.used_memory(),
        bf16_tflops=2 * size**3 / seconds(lambda: a @ b) / 1e12,
        copy_gb_per_s=2 * wide / seconds(lambda: one.clone()) / 1e9,
        pinned_to_host_gb_per_s=len(host) / seconds(lambda: host.copy_(part, non_blocking=True)) / 1e9,
        pinned_to_device_gb_per_s=len(host) / seconds(lambda: part.copy_(host, non_blocking=True)) / 1e9,
        plain_to_host_gb_per_s=len(host) / seconds(lambda: plain.copy_(part)) / 1e9,
        normals_per_s=draws.numel() / seconds(lambda: draws.normal_(generator=torch.Generator()), 2),
    )
    report.row(**_launches())


def _launches() -> dict[str, float]:
    """Microseconds that the host takes to start a kernel that does nothing much, and the device to go from one to the next."""
    few, count = torch.zeros(4, device=DEVICE), 1000

    def many() -> None:
        for _ in range(count):
            few.add_(1)

    many()
    _settle()
    start = time.perf_counter()
    many()
    queued = time.perf_counter() - start
    _settle()
    found = {"us_per_launch": 1e6 * queued / count, "us_per_kernel": 1e6 * seconds(many) / count}
    if DEVICE.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            many()
        found["us_per_kernel_of_a_graph"] = 1e6 * seconds(graph.replay) / count
    return found


class _Layers(torch.nn.Module):
    """Layers of a Llama as wide as 7 B."""

    def __init__(self, small: bool, layers: int, how: str) -> None:
        super().__init__()
        dim, self.seq = (64, 32) if small else (4096, 4096)
        sizes: Any = {"num_heads": max(1, dim // 128), "ffn_dim": dim * 43 // 16, "vocab_size": 64}
        with torch.device(DEVICE):
            model: Any = build(Llama(dim=dim, num_layers=layers, **sizes))
        model.to(DTYPE)
        self.layers, self.how = model.layers, how
        self.context = model.context(self.seq, 0, None, DEVICE)
        self.size = (1, self.seq, dim)
        for parameter in self.layers.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self.run: Any = torch.compile(self.through) if how == "compiled" else self.through

    def through(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, self.context, None)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how != "recomputed":
            return self.run(x)
        from torch.utils.checkpoint import checkpoint

        for layer in self.layers:
            x = checkpoint(layer, x, self.context, None, use_reentrant=False)  # type: ignore[assignment]
        return x


def split(report: Report) -> None:
    """(I + W) of our split backward over autograd's B, at the widths of 7 B in bfloat16, by events of the device."""
    _split(report, ("plain", "recomputed"))


def compiled(report: Report) -> None:
    """The same under torch.compile; most of the time goes into compiling."""
    _split(report, ("compiled",))


def _split(report: Report, hows: Sequence[str]) -> None:
    trust_cublas()
    for how in hows:
        for strict in (False,) if how == "compiled" else (False, True):
            torch.use_deterministic_algorithms(strict)
            nets = {name: _Layers(report.small, 2, how) for name in ("autograd", "ours")}
            gradients = defer(nets["ours"])
            x, dy = (torch.randn(nets["ours"].size, device=DEVICE, dtype=DTYPE) for _ in range(2))
            rows = [_split_round(nets, gradients, x, dy) for _ in range(3 if report.small else 15)][2:]
            ms = {key: 1e3 * statistics.median(row[key] for row in rows) for key in rows[0]}
            ratio = statistics.median((row["I"] + row["W"]) / row["B"] for row in rows)
            own = statistics.median((row["I"] + row["W"]) / row["our B"] for row in rows)
            report.row(how=how, deterministic=strict, i_w_over_b=ratio, i_w_over_our_b=own, **ms)
            del nets, gradients, x, dy
    torch.use_deterministic_algorithms(False)


def trust_cublas() -> None:
    """Before the process's first product, or torch refuses them later under deterministic algorithms."""
    with repeatable(True, DEVICE):
        pass
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def _split_round(nets: dict[str, _Layers], gradients: WeightGradients, x: Any, dy: Any) -> dict[str, float]:
    out: dict[str, float] = {}
    for way in ("autograd", "our B", "ours"):
        net = nets["autograd" if way == "autograd" else "ours"]
        gradients.deferring = way == "ours"
        marks = [_mark()]
        y = net(x.detach().requires_grad_())
        marks.append(_mark())
        torch.autograd.backward(y, dy)
        marks.append(_mark())
        if way == "ours":
            WeightGradients.settle(gradients.take())
            marks.append(_mark())
        _settle()
        names = {"autograd": ("F", "B"), "our B": ("our F", "our B"), "ours": ("our F again", "I", "W")}[way]
        out |= {name: _between(a, b) for name, a, b in zip(names, marks, marks[1:])}
    return out


def _mark() -> Any:
    if DEVICE.type == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(a: Any, b: Any) -> float:
    return b - a if DEVICE.type == "cpu" else a.elapsed_time(b) / 1e3


def embedding(report: Report) -> None:
    """The gradient of an embedding: rows added by atomics, and sorted first, which has one order."""
    vocab, dim, tokens = (64, 32, 128) if report.small else (32_000, 4096, 4096)
    for dtype in (torch.float32, DTYPE):
        into = torch.zeros(vocab, dim, device=DEVICE, dtype=dtype)
        rows = torch.randn(tokens, dim, device=DEVICE, dtype=dtype)
        for what, most in (("uniform", vocab), ("half of them one word", vocab)):
            ids = torch.randint(most, (tokens,), device=DEVICE)
            if what != "uniform":
                ids[: tokens // 2] = 7
            added, again = (into.clone().index_add_(0, ids, rows) for _ in range(2))
            put, twice = (into.clone().index_put_((ids,), rows, accumulate=True) for _ in range(2))
            report.row(
                dtype=str(dtype),
                ids=what,
                index_add_ms=1e3 * seconds(lambda ids=ids, into=into, rows=rows: into.index_add_(0, ids, rows)),
                index_put_ms=1e3
                * seconds(lambda ids=ids, into=into, rows=rows: into.index_put_((ids,), rows, accumulate=True)),
                index_add_repeats=torch.equal(added, again),
                index_put_repeats=torch.equal(put, twice),
            )


def stall(report: Report) -> None:
    """Ten steps with a save over ten without; the table of benchmarks/test_save_stall.py on this device."""
    from test_save_stall import CASES, measure

    sizes = {"dim": 64, "num_layers": 2} if report.small else {"dim": 2048, "num_layers": 4, "ffn_dim": 5504}
    with tempfile.TemporaryDirectory(dir=report.out) as folder:
        found = measure(1 if report.small else 2, 4 if report.small else 64, folder, DEVICE, **sizes)
    for case in CASES:
        pairs = list(zip(found[case], found["no save"], strict=True))
        report.row(
            case=case,
            s_per_step=statistics.median(block.wall for block in found[case]) / 10,
            stalled_s=statistics.median(block.stalled for block in found[case]),
            over_no_save=[round(block.wall / other.wall, 3) for block, other in pairs],
        )
