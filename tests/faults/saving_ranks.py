"""Ranks that save without training: alone, as threads, or as forked processes that talk through sockets; and their contents."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import struct
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from forgather_dsl.train.checkpoint import Contents, Keep, Saved, Saver
from forgather_dsl.train.checkpoint.snapshot import source

NUMBERS = 300  # in a tensor; few enough that torch starts no threads, which a fork would lose


class Alone:
    """The only rank."""

    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


class Threads:
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, table: list) -> None:
        self.rank, self.world, self.barrier, self.table = rank, world, barrier, table

    def gather(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier.wait(30)
        everyone = list(self.table)
        self.barrier.wait(30)
        return everyone


class Wired:
    """One of two ranks that are processes, at the ends of a pair of sockets."""

    world = 2

    def __init__(self, rank: int, end: socket.socket) -> None:
        self.rank, self.end = rank, end

    def gather(self, value: Any) -> list[Any]:
        data = pickle.dumps(value)
        self.end.sendall(struct.pack("<Q", len(data)) + data)
        other = pickle.loads(self._read(struct.unpack("<Q", self._read(8))[0]))
        return [value, other] if self.rank == 0 else [other, value]

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.end.recv(size - len(data))
            if not more:
                os._exit(9)  # the other rank is gone
            data += more
        return data


def on_threads(world: int, work: Callable[[Threads], Any]) -> list[Any]:
    """`work(ranks)` on each of `world` threads."""
    barrier, table = threading.Barrier(world), [None] * world
    with ThreadPoolExecutor(world) as pool:
        return list(pool.map(lambda rank: work(Threads(rank, world, barrier, table)), range(world)))


def forked(work: Callable[[], Any]) -> int:
    """A child that runs `work` and ends; its process id."""
    child = os.fork()
    if child == 0:
        code = 1
        with contextlib.suppress(BaseException):
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
        os._exit(code)
    return child


def kill(*children: int) -> None:
    """SIGKILL and wait."""
    for child in children:
        os.kill(child, signal.SIGKILL)
    for child in children:
        os.waitpid(child, 0)


def tensors(rank: int, value: float, count: int = 4) -> dict[str, torch.Tensor]:
    """Weights and optimizer state of a rank, all of one value."""
    names = [f"{kind}/layer{rank}.{i}" for kind in ("weights", "optimizer") for i in range(count)]
    return {name + "/exp_avg" * name.startswith("opt"): torch.full((NUMBERS,), value) for name in names}


def contents(step: int, held: dict[str, torch.Tensor], **more: Any) -> Contents:
    """What a rank that has `held` saves."""
    return Contents(step, [source(key, tensor) for key, tensor in held.items()], **more)


def save_one(folder: Path, step: int, value: float | None = None, keep: Keep | None = None, **more: Any) -> str:
    """Write one checkpoint alone, of `value` or the step's number."""
    held = tensors(0, float(step if value is None else value))
    return Saver(str(folder), Alone(), keep or Keep(100)).save(contents(step, held, **more), wait=True)


def value_of(saved: Saved) -> float:
    """The one number that all tensors of a checkpoint hold; fails when they do not."""
    found = {x for _, tensor in saved.tensors(list(saved.stored())) for x in tensor.unique().tolist()}
    assert len(found) == 1, found
    return found.pop()
