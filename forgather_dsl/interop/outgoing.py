"""Weights on their way out: those of a run's newest checkpoint, or of a checkpoint, verified before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..specs import Experiment
from ..train import checkpoint, directory
from ..train.weights import Stored, alone, expected, read_weights, require_same, stored
from .folder import SHARD_BYTES, TYPES, in_shards, num_bytes

__all__ = ["Outgoing", "open_outgoing"]


class Outgoing(NamedTuple):
    """A verified checkpoint, and what it is of. `stored` is as it will be written: number format and file of each tensor."""

    experiment: Experiment
    saved: checkpoint.Saved
    stored: dict[str, Stored]
    dtype: torch.dtype | None  # of all tensors; None: as they are stored

    @property
    def model(self) -> Any:
        """The spec of what they are of."""
        return self.experiment.model

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(map(num_bytes, self.stored.values()))

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each, or of those named, one at a time and in any order.

        Raises UserError for numbers that float16 does not have.
        """
        for name, tensor in read_weights(self.saved, self.stored if names is None else names):
            converted = tensor if self.dtype is None else tensor.to(self.dtype)
            if self.dtype == torch.float16 and not torch.equal(converted.isfinite(), tensor.isfinite()):
                raise UserError(f"{name} has numbers above 65504, which float16 does not have; write --dtype bfloat16")
            yield name, converted


def open_outgoing(
    source: str,
    experiment: Experiment | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    *,
    trust: bool = False,
) -> Outgoing:
    """Verify hashes, then names, shapes and number formats against the model.

    Args:
        source: a run directory or a checkpoint folder.
        experiment: what was trained; None: what the run directory says, with `trust` with the user's own code.
        dtype: float32, bfloat16 or float16; None: as the tensors are stored.

    Raises:
        UserError: with every tensor that is missing, unexpected or of another shape.
    """
    saved, described = _opened(source, trust)
    experiment = described if experiment is None else experiment
    if experiment is None:
        raise UserError(
            f"{source} lies in no run directory, so nothing says what model it is; add --target file.py:Class"
        )
    found = stored(saved)
    require_same(saved.path, found, expected(experiment.model, len(found)))
    target = None if dtype is None else getattr(torch, dtype)
    if target is not None:
        found = {name: entry._replace(dtype=TYPES[target]) for name, entry in found.items()}
    return Outgoing(experiment, saved, in_shards(found, shard_bytes), target)


def _opened(source: str, trust: bool) -> tuple[checkpoint.Saved, Experiment | None]:
    """The verified checkpoint, and what was trained where the run directory around it says so."""
    if os.path.isfile(os.path.join(source, "manifest.json")):
        wrong = checkpoint.problem(source)
        if wrong:
            raise UserError(f"{source}: {wrong}; take another checkpoint")
        run = os.path.dirname(os.path.dirname(os.path.abspath(source)))
        within = os.path.isfile(os.path.join(run, "config.json"))
        return checkpoint.open_checkpoint(source), directory.read_config(run, trust=trust) if within else None
    experiment = directory.read_config(source, trust=trust)
    saved = checkpoint.newest(os.path.join(source, "checkpoints"), alone())
    if saved is None:
        raise UserError(f"{source} has no checkpoint to export; train it, or write save_every = ... for earlier ones")
    return saved, experiment
