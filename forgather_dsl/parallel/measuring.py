"""What ranks compute and what passes between them, measured: `python -m forgather_dsl.parallel.measuring FILE`, a rank of it.

In: the ranks this process is one of (our launcher's, torchrun's). Out: on rank 0 a `dict` for `plan.measured`, written to FILE.
All ranks work at the same time, as they do in training: what they share (a host's memory, its cores, a switch) counts. Every
number is the median of several repeats, after one to warm up; the slowest rank's where ranks differ.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from forgather_dsl.parallel.group import World, join
from forgather_dsl.parallel.launch import end_process

__all__ = ["measure"]

SECONDS = 0.3  # that repeats of one measurement go on for, and
LEAST, MOST = 3, 50  # how many there are
PRODUCT = {"cuda": (4096, 4096, 11008), "cpu": (128, 512, 1408)}  # tokens, width, MLP: of a 7 B model, of a small one
COPIED = {"cuda": 1 << 29, "cpu": 1 << 26}  # bytes
MESSAGE = {"nccl": 1 << 25, "gloo": 1 << 22}  # bytes of an activation
LAYER = {"nccl": 1 << 28, "gloo": 1 << 24}  # bytes of a layer's weights, over all ranks
PINGS = 50
JOIN_SECONDS = 120.0

ALL_GATHER: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name from torch 2.13 on
REDUCE_SCATTER: Any = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)

Work = Callable[[], object]


def measure() -> dict[str, Any] | None:
    """Join the other ranks and measure with them; None on all but rank 0.

    Raises ValueError when this process is alone.
    """
    world = join(timeout_seconds=JOIN_SECONDS)
    if world.backend is None:
        raise ValueError("a link has two ends, and this is one rank; start two or more")
    try:
        with torch.no_grad():
            return _Links(world).all()
    finally:
        dist.destroy_process_group()


class _Links:
    """One rank's part of each measurement. Every rank runs every method, in the same order."""

    def __init__(self, world: World) -> None:
        self.world, self.kind = world, world.device.type
        assert world.backend is not None
        self.backend = world.backend
        self.wire = world.device if self.backend == "nccl" else torch.device("cpu")

    def all(self) -> dict[str, Any] | None:
        """Everything, on rank 0."""
        formats = {"bf16": torch.bfloat16, "fp32": torch.float32}
        found: dict[str, Any] = {f"products_{name}": self.product(dtype) for name, dtype in formats.items()}
        found["copies"] = self.copy()
        if self.kind == "cuda":
            found |= {"to_device": self.to_device(back=False), "from_device": self.to_device(back=True)}
        ranks = self.gathered({**found, "name": self.name(), "card": self.world.device.index, "host": platform.node()})
        between = {
            "pairs": [self.pair(rank) for rank in range(self.world.size - 1)],
            "neighbours": self.neighbours(),
            "all_gather": self.all_gather(),
            "reduce_scatter": self.reduce_scatter(),
            "all_reduce": self.all_reduce(),
        }
        if self.world.rank:
            return None
        where = {"backend": self.backend, "device": self.kind, "when": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        sizes = {
            "product": PRODUCT[self.kind],
            "message_bytes": MESSAGE[self.backend],
            "layer_bytes": LAYER[self.backend],
        }
        return {"links": 1, **where, **sizes, "ranks": ranks, **between}

    def name(self) -> str:
        """Of this rank's device."""
        return torch.cuda.get_device_name(self.world.device) if self.kind == "cuda" else "CPU"

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        values: list[Any] = [None] * self.world.size
        dist.all_gather_object(values, value)
        return values

    def wait(self) -> None:
        """Until the device has done what it was told."""
        if self.kind == "cuda":
            torch.cuda.synchronize(self.world.device)

    def timed(self, work: Work) -> float:
        """Seconds of one `work`. How often it is repeated the slowest rank decides, so that ranks stay together."""
        dist.barrier()
        first = [self.once(work) for _ in range(2)][1]
        slowest = max(self.gathered(first))
        repeats = max(LEAST, min(MOST, int(SECONDS / max(slowest, 1e-9))))
        return median(self.once(work) for _ in range(repeats))

    def once(self, work: Work) -> float:
        """Seconds of one `work`, to its end on this rank's device."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def slowest(self, seconds: float) -> float:
        """Of all ranks."""
        return max(self.gathered(seconds))

    def product(self, dtype: torch.dtype) -> float:
        """FLOP/s of the product of an MLP."""
        rows, inner, columns = PRODUCT[self.kind]
        left = torch.randn(rows, inner, device=self.world.device).to(dtype)
        right = torch.randn(inner, columns, device=self.world.device).to(dtype)
        out = torch.empty(rows, columns, device=self.world.device, dtype=dtype)
        return 2 * rows * inner * columns / self.timed(lambda: torch.mm(left, right, out=out))

    def copy(self) -> float:
        """Bytes per second that a copy within the device's memory reads and writes."""
        source = torch.ones(COPIED[self.kind], dtype=torch.uint8, device=self.world.device)
        target = torch.empty_like(source)
        return 2 * source.numel() / self.timed(lambda: target.copy_(source))

    def to_device(self, back: bool) -> float:
        """Bytes per second between pinned memory of the host and the card, or back."""
        host = torch.ones(COPIED["cpu"], dtype=torch.uint8, pin_memory=True)
        card = torch.empty_like(host, device=self.world.device)
        source, target = (card, host) if back else (host, card)
        return host.numel() / self.timed(lambda: target.copy_(source, non_blocking=True))

    def message(self, count: int = 1) -> list[torch.Tensor]:
        """As many tensors of an activation's size, where messages have to lie."""
        size = MESSAGE[self.backend]
        return [torch.ones(size, dtype=torch.uint8, device=self.wire) for _ in range(count)]

    def exchange(self, sends: list[int], receives: list[int]) -> float:
        """Seconds until this rank has sent a message to each of `sends` and has one of each of `receives`."""
        out, into = self.message(len(sends)), self.message(len(receives))

        def work() -> None:
            calls = [dist.P2POp(dist.irecv, tensor, peer) for tensor, peer in zip(into, receives)]
            calls += [dist.P2POp(dist.isend, tensor, peer) for tensor, peer in zip(out, sends)]
            for call in dist.batch_isend_irecv(calls) if calls else ():
                call.wait()

        return self.timed(work)

    def pair(self, lower: int) -> dict[str, Any]:
        """Of ranks `lower` and the next: bytes per second one way, each way when both send, and seconds of a small message."""
        upper, rank, size = lower + 1, self.world.rank, MESSAGE[self.backend]
        other = {lower: [upper], upper: [lower]}.get(rank, [])
        one = self.exchange(other if rank == lower else [], other if rank == upper else [])
        both = self.exchange(other, other)
        ping = self.timed(lambda: self.pings(lower, upper)) / (2 * PINGS)
        rates = {"one_way": size / self.slowest(one), "both_ways": size / self.slowest(both)}
        return {"ranks": [lower, upper], **rates, "latency": self.slowest(ping)}

    def pings(self, lower: int, upper: int) -> None:
        """Eight bytes there and back, again and again."""
        small = torch.zeros(1, dtype=torch.float64, device=self.wire)
        for _ in range(PINGS if self.world.rank in (lower, upper) else 0):
            if self.world.rank == lower:
                dist.send(small, upper)
                dist.recv(small, upper)
            else:
                dist.recv(small, lower)
                dist.send(small, lower)

    def neighbours(self) -> float:
        """Bytes per second each way over every link, when all ranks of a pipeline send to both neighbours at once."""
        rank, last = self.world.rank, self.world.size - 1
        beside = [other for other in (rank - 1, rank + 1) if 0 <= other <= last]
        return MESSAGE[self.backend] / self.slowest(self.exchange(beside, beside))

    def layer(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's weights, and this rank's shard of them."""
        each = LAYER[self.backend] // 4 // self.world.size
        shard = torch.ones(each, device=self.wire)
        return torch.ones(each * self.world.size, device=self.wire), shard

    def all_gather(self) -> float:
        """Bytes per second that each rank sends."""
        whole, shard = self.layer()
        seconds = self.timed(lambda: ALL_GATHER(whole, shard))
        return (self.world.size - 1) * shard.nbytes / self.slowest(seconds)

    def reduce_scatter(self) -> float:
        """Bytes per second that each rank sends; over gloo as all-to-all and a sum, for its own is an all-reduce."""
        whole, shard = self.layer()

        def work() -> None:
            if self.backend == "nccl":
                REDUCE_SCATTER(shard, whole)
                return
            received = torch.empty_like(whole)
            dist.all_to_all_single(received, whole)
            torch.sum(received.view(self.world.size, -1), 0, out=shard)

        return (self.world.size - 1) * shard.nbytes / self.slowest(self.timed(work))

    def all_reduce(self) -> float:
        """Bytes per second that each rank sends, in a ring."""
        whole, shard = self.layer()
        seconds = self.timed(lambda: dist.all_reduce(whole))
        return 2 * (self.world.size - 1) * shard.nbytes / self.slowest(seconds)


def main(file: str) -> int:
    """Measure as this rank; rank 0 writes FILE."""
    found = measure()
    if found is not None:
        with open(file + ".partial", "w", encoding="utf-8") as opened:
            json.dump(found, opened, indent=1)
        os.replace(file + ".partial", file)
    return 0


if __name__ == "__main__":
    end_process(main(sys.argv[1]))
