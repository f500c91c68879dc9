"""What a rank of FSDP2 really holds at its peak, found by running it on fake tensors, as `exact` does for stages.

In: an experiment. Out: `ExactRank`, of the rank with the most rows. Needs no other rank: collectives go to a process group of
nobody, which is left again at the end, so no real one may be there. torch resizes the storages of gathered weights by hand,
which is followed here.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode

from ..parallel.sharded import Sharded, Sharding, make_mesh
from ..plan.layout import lay_out
from ..specs import FSDP2, BF16Mixed, Experiment
from .as_gpu import as_on_gpu
from .assembly import make_model, make_stage
from .exact import KINDS, ExactRank, kind_of, steps
from .live import CUDA_BLOCK, LiveBytes

__all__ = ["exact_sharded"]


class _Unread(Sharded):
    """Shards whose loss nobody reads: fake tensors have no values."""

    def _loss_sum(self, execution: Any) -> None:
        return None


def exact_sharded(experiment: Experiment, *, on_gpu: bool = True, fake: bool = True) -> ExactRank:
    """Rank 0, in this process; `on_gpu` and `fake` as in `exact.run_rank`. Raises RuntimeError in a process group."""
    parallel, layout, started = experiment.parallel, lay_out(experiment), time.perf_counter()
    assert isinstance(parallel, FSDP2)
    how = Sharding(parallel.shards, parallel.replicas, parallel.reshard_after_forward, parallel.offload)
    model = make_model(experiment)
    autocast = torch.bfloat16 if on_gpu and isinstance(experiment.precision, BF16Mixed) else None
    live = LiveBytes(CUDA_BLOCK if on_gpu else 1, partial(kind_of, experiment.model.vocab_size))
    with _nobody(parallel.shards * parallel.replicas), _resized(live):
        mesh = make_mesh(torch.device("cpu"), how)
        with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
            stage = make_stage(experiment, model, layout, 0, torch.device("cpu"), autocast, hollow=True)
            pipeline = _Unread(stage, layout.schedule, experiment.seed, 0, how, mesh, fill=False)
            for _, parameter in pipeline.stages[0].named_parameters():
                live.hold(getattr(parameter, "_local_tensor", parameter), "weights")
            with as_on_gpu() if on_gpu else nullcontext():
                steps(experiment, pipeline, live, on_gpu, short=fake)
    kinds = {kind: live.at_peak[kind] for kind in KINDS}
    return ExactRank(0, kinds, layout.schedule.num_microbatches, time.perf_counter() - started)


@contextmanager
def _nobody(size: int) -> Iterator[None]:
    """A process group of `size` ranks, of which this process is the first and the others are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # what torch simulates process groups with

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def _resized(live: LiveBytes) -> Iterator[None]:
    """Count storages again when they are resized."""
    plain = torch.UntypedStorage.resize_

    def resize(storage: torch.UntypedStorage, size: int) -> Any:
        out = plain(storage, size)
        live.resized(storage)
        return out

    torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = plain  # type: ignore[method-assign]
