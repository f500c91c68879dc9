"""Gradients of data-parallel replicas, added up while the backward pass goes on.

In: a pipeline, what its ranks share. Out: the sum over replicas in every `.grad` at the end of a step. As soon as the last
gradients of a bucket are there, its sum begins, and travels beside what is still computed (as torch's
DistributedDataParallel, arXiv 2006.15704). Buckets and their order are fixed by names and shapes, so that every start adds
in the same order, and may have any format; no more than `FLYING` are under way, so that no copy of all gradients is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist

from forgather_dsl.parallel.failures import PeerLost
from forgather_dsl.parallel.group import Mesh
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.progress import PROGRESS
from forgather_dsl.parallel.replicas import buckets, sum_gradients

__all__ = ["BUCKET_BYTES", "FLYING", "Reducer", "make_reducer"]

BUCKET_BYTES = 25 * 2**20  # of gradients: the memory that a copy takes, against the latency of a message
FLYING = 3  # buckets: with a slow link two wait while one is sent, so the link is never idle


class _Flight(NamedTuple):
    """A bucket whose sum is under way."""

    bucket: list[torch.nn.Parameter]
    flat: torch.Tensor
    work: dist.Work


class Reducer:
    """A listener of a pipeline's gradients. `early` are names in the order in which their last gradients come; the others of
    `parameters`, a tied embedding's and a spread head's, are summed at the end."""

    def __init__(
        self,
        parameters: Mapping[str, torch.nn.Parameter],
        early: Sequence[str],
        mesh: Mesh,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        self.mesh = mesh
        trained = [parameters[name] for name in early if parameters[name].requires_grad]
        self.buckets = list(buckets(trained, bucket_bytes))
        place = {id(p): number for number, bucket in enumerate(self.buckets) for p in bucket}
        self._place = {name: place[id(p)] for name, p in parameters.items() if id(p) in place}
        self._rest = {name: p for name, p in parameters.items() if name not in self._place}
        self._missing: list[set[str]] = []
        self._next = 0
        self._flying: deque[_Flight] = deque()
        self._counts: list[tuple[list[torch.nn.Parameter], torch.Tensor]] = []

    def begin(self) -> None:
        """A step begins."""
        self._missing, self._next, self._counts = [set() for _ in self.buckets], 0, []
        for name, number in self._place.items():
            self._missing[number].add(name)

    def arrived(self, names: Sequence[str], last: bool) -> None:
        """Begin the sums of buckets that are complete, in their order: the same on every replica."""
        for name in names if last else ():
            if name in self._place:
                self._missing[self._place[name]].discard(name)
        while self._next < len(self.buckets) and not self._missing[self._next]:
            self._send()

    @torch.no_grad()
    def finish(self) -> None:
        """Sum what is left, and wait for all. None stays None where no replica has a gradient.

        Raises PeerLost when a replica is gone.
        """
        if self.mesh.peers is None:
            return
        while self._next < len(self.buckets):
            self._send()
        while self._flying:
            self._land()
        for bucket, counts in self._counts:
            for parameter, count in zip(bucket, counts.tolist()):
                parameter.grad = parameter.grad if count else None
        sum_gradients(self._rest, self.mesh)

    @torch.no_grad()
    def _send(self) -> None:
        if len(self._flying) == FLYING:
            self._land()
        bucket, self._next = self.buckets[self._next], self._next + 1
        has = [float(p.grad is not None) for p in bucket]  # a layer that some replica never used has none there
        gradients = [torch.zeros_like(p, dtype=p.grad_dtype) if p.grad is None else p.grad for p in bucket]
        for parameter, gradient in zip(bucket, gradients):
            parameter.grad = gradient
        flat = torch.cat([gradients[0].new_tensor(has), *(g.flatten() for g in gradients)]).to(self.mesh.wire)
        try:
            work = dist.all_reduce(flat, group=self.mesh.peers, async_op=True)
        except RuntimeError as error:
            raise PeerLost("another replica", "adding up gradients", error) from error
        assert work is not None
        self._flying.append(_Flight(bucket, flat, work))

    def _land(self) -> None:
        bucket, flat, work = self._flying.popleft()
        PROGRESS.wait("the other replicas", "gradients")
        try:
            work.wait()
        except RuntimeError as error:
            raise PeerLost("another replica", "adding up gradients", error) from error
        PROGRESS.resume()
        counts, *sums = flat.split([len(bucket), *(p.numel() for p in bucket)])
        for parameter, total in zip(bucket, sums):
            assert parameter.grad is not None
            parameter.grad.copy_(total.view_as(parameter.grad))
        self._counts.append((bucket, counts))  # read at the end: reading waits for a GPU


def make_reducer(pipeline: Pipeline, mesh: Mesh, later: Collection[str], bucket_bytes: int = BUCKET_BYTES) -> Reducer:
    """Of the parameters that are `later` to be summed; it listens where nobody else does."""
    parameters = {name: p for name, p in pipeline.named_parameters() if name in later}
    listens = mesh.peers is not None and pipeline.tells_of_arrivals and pipeline.listener is None
    stages = [stage for _, stage in sorted(pipeline.stages.items(), reverse=True)] if listens else []
    early = [name for stage in stages for part in reversed(stage.parts().values()) for name, _ in part]
    reducer = Reducer(parameters, [name for name in early if name in parameters], mesh, bucket_bytes)
    if reducer.buckets:
        pipeline.listener = reducer
    return reducer
