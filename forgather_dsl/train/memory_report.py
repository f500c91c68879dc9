"""Out of memory, explained: what failed, what the plan had said against what was there, and what to change.

In: an error anywhere in a run, its run directory, the session as far as it was built. Out: a `UserError` (exit code 4). What is
there is counted: weights, gradients and optimizer state one by one; the peak by the GPU's allocator or, on a host, of the
process; the rest of the peak is activations, buffers and what nobody planned.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch

from ..errors import UserError
from ..parallel.failures import ActionFailed, out_of_memory, raised
from ..parallel.group import World
from ..plan import hardware
from ..plan.estimate import Site, most_ranks_per_gpu
from ..plan.hardware import GIB
from ..plan.savings import savings
from ..specs import Experiment
from .directory import read_layout

if TYPE_CHECKING:
    from .session import Session

__all__ = ["MemoryReport", "doing", "process_peak"]

MOST_EDITS = 3
_REST = ("activations", "buffers", "loss")  # kinds of the plan that cannot be counted one by one


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Say what is being done, should memory run out meanwhile; the innermost counts."""
    try:
        yield
    except Exception as error:
        error.__dict__.setdefault("doing", what)
        raise


class MemoryReport:
    """While entered, running out of memory becomes a UserError that explains it. `session` is told once there is one."""

    def __init__(self, experiment: Experiment, path: str, world: World) -> None:
        self.experiment, self.path, self.world = experiment, path, world
        self.session: Session | None = None

    def __enter__(self) -> MemoryReport:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and out_of_memory(error):
            raise UserError(self._explained(error), exit_code=4) from error

    def _explained(self, error: Exception) -> str:
        lines = [self._what(error)]
        for part in (self._against_plan, self._ranks, self._edits):
            try:
                lines += part()
            except Exception as other:  # this only adds to an error, and must not hide it
                lines.append(f"({part.__name__.strip('_')} cannot be told: {type(other).__name__}: {other})")
        return "\n".join(lines)

    def _what(self, error: Exception) -> str:
        what = error.__dict__.get("doing", "training")
        if isinstance(error, ActionFailed):
            return f"out of memory {what}: {error}"
        parts = [part.described for part in _parts(self.session)]
        where = ", ".join([f"rank {self.world.rank}", *parts])
        return f"out of memory {what}: {where}: {raised(error)}"

    def _against_plan(self) -> list[str]:
        planned: dict[str, float] = {k: v * GIB for k, v in self._plan()[self.world.rank]["memory_gib"].items()}
        counted = _counted(self.session)
        peak, told = _peak(self.world)
        rows = [(kind, planned[kind], counted[kind]) for kind in counted]
        rest = peak - sum(counted.values())
        if self.world.device.type == "cuda":
            rows.append((", ".join(_REST), sum(planned[kind] for kind in _REST), rest))
            rows.append(("in all at the peak", sum(planned.values()) - planned["overhead"], peak))
        else:
            kinds = (*_REST, "overhead")
            rows.append((", ".join(kinds), sum(planned[kind] for kind in kinds), rest))
            rows.append(("in all at the peak", sum(planned.values()), peak))
        width = max(len(name) for name, _, _ in rows)
        head = f"  {'':<{width}}  {'planned':>10}  {'here':>10}"
        return [
            head,
            *(f"  {n:<{width}}  {_size(p):>10}  {_size(h):>10}" for n, p, h in rows),
            *(f"  {t}" for t in told),
        ]

    def _ranks(self) -> list[str]:
        """Every rank's plan against its peak, as of the last step that was finished."""
        peaks = self.session.peaks if self.session is not None else []
        if len(peaks) < 2:
            return []
        lines = [f"  peaks up to step {self.session.step}:" if self.session is not None else ""]
        for rank, peak in zip(self._plan(), peaks):
            stages = ", ".join(str(stage["stage"]) for stage in rank["stages"])
            planned = rank["peak_gib"] - (rank["memory_gib"]["overhead"] if self.world.device.type == "cuda" else 0.0)
            lines.append(
                f"    rank {rank['rank']} (stage {stages}): planned {_size(planned * GIB)}, there {_size(peak)}"
            )
        return lines

    def _edits(self) -> list[str]:
        e = self.experiment
        on_gpu = self.world.device.type == "cuda"
        site = Site(hardware.gpus() if on_gpu else (), hardware.host_memory(), ranks_per_gpu=most_ranks_per_gpu(e))
        site = replace(site, ranks_here=_ranks_here(self.world))
        found = savings(e, site, self.world.rank, read_layout(self.path))[:MOST_EDITS]
        if not found:
            return ["nothing that is known here would need less; a smaller model (dim, num_layers, vocab_size) would"]
        where = f"rank {self.world.rank}" if on_gpu else "this host"
        lines = [f"to need less, in the class body (by the plan's estimate, for {where}):"]
        lines += [f"  {s.line:<55} # saves {_size(s.saved)}, leaves {_size(s.left)}" for s in found]
        names = sorted({name for s in found for name in re.findall(r"\b([A-Z]\w*)\(", s.line)})
        return lines + ([f"with: from forgather_dsl import {', '.join(names)}"] if names else [])

    def _plan(self) -> list[dict[str, Any]]:
        with open(os.path.join(self.path, "plan.json"), encoding="utf-8") as file:
            return json.load(file)["ranks"]


def _parts(session: Session | None) -> list[Any]:
    if session is None:
        return []
    return [part for part in (*session.pipeline.stages.values(), session.pipeline.shard) if part is not None]


def _counted(session: Session | None) -> dict[str, float]:
    """Bytes of this rank's weights, gradients and optimizer state."""
    out = {"weights": 0.0, "gradients": 0.0, "optimizer": 0.0}
    if session is None:
        return out
    for parameter in session.parameters.values():
        out["weights"] += parameter.nbytes
        out["gradients"] += parameter.grad.nbytes if parameter.grad is not None else 0
    for _, _, state in session.optimizer.named_states():
        out["optimizer"] += sum(value.nbytes for value in state.values() if isinstance(value, torch.Tensor))
    out["optimizer"] += session.optimizer.extra_bytes
    return out


def _peak(world: World) -> tuple[float, list[str]]:
    """Bytes of this rank at its peak, and what else there is to know of its memory."""
    if world.device.type == "cuda":
        stats = torch.cuda.memory_stats(world.device)
        free, total = torch.cuda.mem_get_info(world.device)
        reserved = stats["reserved_bytes.all.current"]
        others = max(0, total - free - reserved)
        return stats["allocated_bytes.all.peak"], [
            f"{torch.cuda.get_device_name(world.device)}: {_size(total)}, of which this process has reserved {_size(reserved)} "
            f"(at most {_size(stats['reserved_bytes.all.peak'])}), its context and other processes {_size(others)}"
        ]
    told = [f"this machine: {_size(hardware.host_memory())}"]
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        told.append(f"this process may have addresses for {_size(limit)} (ulimit -v)")
    return process_peak(), told


def process_peak() -> int:
    """Bytes that this process has taken at its most."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ranks_here(world: World) -> range | None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world.size))
    first = world.rank - int(os.environ.get("LOCAL_RANK", world.rank))
    return range(first, first + local) if local < world.size and first + local <= world.size else None


def _size(count: float) -> str:
    """Bytes for a person."""
    return f"{count / GIB:.2f} GiB" if abs(count) >= 0.1 * GIB else f"{count / 2**20:.1f} MiB"
