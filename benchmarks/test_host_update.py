"""What the host's part of a step costs per parameter: adding a gradient, the update, rounding to bfloat16 (`OnHost`).

`python benchmarks/test_host_update.py [ROUNDS]` prints the table. Times are CPU time of the process with one thread; every
round runs every part in turn, and the median of the rounds counts. One matrix of 4096 x 4096, larger than any cache.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import median, quantiles

import torch
from torch import nn

from forgather_dsl import AdamW
from forgather_dsl.dsl import build
from forgather_dsl.train.optim import parameter_groups
from forgather_dsl.train.update.travel import round_to
from forgather_dsl.train.update.worker import PIECE

SIDE = 4096


def parts() -> dict[str, Callable[[], object]]:
    """Each part of the host's work, over one matrix."""
    generator = torch.Generator().manual_seed(0)
    master = nn.Parameter(torch.randn(SIDE, SIDE, generator=generator) * 0.02)
    master.grad = torch.randn(SIDE, SIDE, generator=generator)
    total, narrow = torch.zeros(SIDE * SIDE), master.grad.flatten().bfloat16()
    fused = torch.optim.AdamW([nn.Parameter(master.detach().clone())], fused=True)
    fused.param_groups[0]["params"][0].grad = master.grad
    into, flat = torch.empty(SIDE * SIDE, dtype=torch.bfloat16), master.detach().flatten()

    def pieces(job: Callable[[slice], object]) -> None:
        for start in range(0, SIDE * SIDE, PIECE):
            job(slice(start, start + PIECE))

    found: dict[str, Callable[[], object]] = {
        "adding a bfloat16 gradient": lambda: pieces(lambda s: total[s].add_(narrow[s])),
        "rounding to bfloat16": lambda: pieces(lambda s: round_to(flat[s], into[s])),
        "torch's fused AdamW": fused.step,
    }
    for states in ("fp32", "bf16", "8bit"):
        optimizer = build(AdamW(states=states), params=parameter_groups([("weight", master)]))
        for kib in (256, 1024, 4096) if states == "fp32" else (1024,):

            def step(optimizer=optimizer, kib=kib) -> None:
                optimizer.chunk_bytes = kib << 10
                optimizer.step()

            found[f"AdamW, {states} states, chunks of {kib} KiB"] = step
    return found


def measure(rounds: int) -> dict[str, list[float]]:
    """CPU seconds of every part in every round, after one that warms up."""
    torch.set_num_threads(1)
    jobs = parts()
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            begin = time.process_time()
            job()
            if number:
                seconds[name].append(time.process_time() - begin)
    return seconds


def test_every_part_is_measured() -> None:
    assert all(len(times) == 2 and min(times) > 0 for times in measure(2).values())


if __name__ == "__main__":
    for name, times in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 7).items():
        low, _, high = (1e9 * t / SIDE**2 for t in quantiles(times, n=4))
        print(f"| {name} | {1e9 * median(times) / SIDE**2:.2f} [{low:.2f}-{high:.2f}] |")
