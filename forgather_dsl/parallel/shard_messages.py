"""Collectives of sharded parameters on gloo, with the bytes that theory asks for: what torch's fully_shard is given to use.

gloo's own reduce-scatter is an all-reduce, twice the bytes. Here every rank sends each other rank its slice of the gradient
and adds up what it receives in the order of ranks, in fp32, with one rounding to the gradient's format: (n - 1) / n of the
bytes, and the same bits on every start. A gather runs beside what is computed until somebody waits for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from forgather_dsl.parallel.failures import PeerLost
from forgather_dsl.parallel.progress import PROGRESS

__all__ = ["Gather", "ReduceScatter"]


_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # renamed in torch 2.13


class Gather:
    """All ranks' slices of some parameters, on every rank. Raises PeerLost when a rank is gone."""

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for what is gathered."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: dist.ProcessGroup, async_op: bool = False
    ) -> dist.Work | None:
        """Begin, and with `async_op` return what to wait for."""
        with _together("weights", async_op):
            work = _gather(output_tensor, input_tensor, group, async_op=async_op)
        return None if work is None else _Gathering(work)


class _Gathering(dist.Work):
    """A gather under way."""

    def __init__(self, work: dist.Work) -> None:
        super().__init__()
        self.work = work

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        """Until it is here."""
        with _together("weights"):
            return self.work.wait()


class ReduceScatter:
    """The sum over ranks of this rank's slice. Raises PeerLost when a rank is gone."""

    def allocate(self, size: Sequence[Any], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Memory for gradients to send, or for the sum."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,  # a sum: nothing else is asked for (sharded.py)
        async_op: bool = False,
    ) -> None:
        """Exchange slices, and add."""
        received = torch.empty_like(input_tensor)
        with _together("gradients"):
            dist.all_to_all_single(received, input_tensor, group=group)
        parts = received.view(group.size(), -1)
        total = (
            output_tensor if output_tensor.dtype == torch.float32 else torch.empty_like(parts[0], dtype=torch.float32)
        )
        total.copy_(parts[0])
        for part in parts[1:]:
            total.add_(part)
        if total is not output_tensor:
            output_tensor.copy_(total)


@contextmanager
def _together(what: str, begins: bool = False) -> Iterator[None]:
    if not begins:
        PROGRESS.wait("the other ranks", what)
    try:
        yield
    except RuntimeError as error:
        raise PeerLost("another rank", f"exchanging {what}", error) from error
    if not begins:
        PROGRESS.resume()
