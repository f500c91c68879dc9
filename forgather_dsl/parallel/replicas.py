"""Gradients of data-parallel replicas, added up once a step, after the last backward.

In: this rank's parameters by name, the group of the ranks that hold the same ones. Out: the sum over replicas in `.grad`.
They travel in few flat buckets, in the order of names: what is added to what depends on the names and shapes alone. Every
rank gets the same bits, so replicas stay equal without ever exchanging weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist

from forgather_dsl.parallel.failures import PeerLost
from forgather_dsl.parallel.group import Mesh
from forgather_dsl.parallel.progress import PROGRESS

__all__ = ["BUCKET_BYTES", "buckets", "sum_gradients"]

BUCKET_BYTES = 64 * 2**20  # of gradients: the memory that a copy takes, against the latency of a message


@torch.no_grad()
def sum_gradients(parameters: Mapping[str, torch.nn.Parameter], mesh: Mesh, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Replace every gradient by its sum over the replicas; None stays None where no replica has one.

    Sums have the precision of the gradients: with two replicas one rounding to it, with more one for each but the first.
    Raises PeerLost when a replica is gone.
    """
    if mesh.peers is None:
        return
    trained = [parameters[name] for name in sorted(parameters) if parameters[name].requires_grad]
    for bucket in buckets(trained, bucket_bytes):
        has = [float(p.grad is not None) for p in bucket]  # a layer that some replica never used has none there
        gradients = [torch.zeros_like(p, dtype=p.grad_dtype) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradients[0].new_tensor(has), *(g.flatten() for g in gradients)]).to(mesh.wire)
        PROGRESS.wait("the other replicas", "gradients")
        try:
            dist.all_reduce(flat, group=mesh.peers)
        except RuntimeError as error:
            raise PeerLost("another replica", "adding up gradients", error) from error
        PROGRESS.resume()
        counts, *sums = flat.split([len(bucket), *(p.numel() for p in bucket)])
        for parameter, count, gradient, total in zip(bucket, counts.tolist(), gradients, sums):
            parameter.grad = gradient.copy_(total.view_as(gradient)) if count else None


def buckets(parameters: list[torch.nn.Parameter], most: int) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours whose gradients have one format, up to `most` bytes together; a larger one alone."""
    bucket: list[torch.nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and (size + parameter.nbytes > most or parameter.grad_dtype != bucket[0].grad_dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket
