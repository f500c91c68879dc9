"""One of two processes that measure messages between ranks: `python -m forgather_dsl.cli.ping RANK FILE`.

Rank 0 prints JSON: seconds for a round trip of 8 bytes, and bytes per second of large messages, over gloo.
"""

from __future__ import annotations

import json
import sys
import time

ROUNDS, LARGE_BYTES = 50, 16 * 2**20


def ping(rank: int, file: str) -> dict[str, float] | None:
    """Exchange messages with the other rank, which meets us at `file`; rank 0 gets the times."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    small, large = torch.zeros(1, dtype=torch.float64), torch.zeros(LARGE_BYTES, dtype=torch.uint8)
    seconds = [_round_trips(dist, rank, tensor, rounds) for tensor, rounds in ((small, ROUNDS), (large, 3))]
    dist.destroy_process_group()
    return {"seconds": seconds[0], "bytes_per_second": 2 * LARGE_BYTES / seconds[1]} if rank == 0 else None


def _round_trips(dist, rank: int, tensor, rounds: int) -> float:
    """Seconds of one there and back, after one to warm up."""
    start = 0.0
    for number in range(rounds + 1):
        if number == 1:
            start = time.perf_counter()
        if rank == 0:
            dist.send(tensor, 1)
            dist.recv(tensor, 1)
        else:
            dist.recv(tensor, 0)
            dist.send(tensor, 0)
    return (time.perf_counter() - start) / rounds


if __name__ == "__main__":
    times = ping(int(sys.argv[1]), sys.argv[2])
    if times is not None:
        print(json.dumps(times))
