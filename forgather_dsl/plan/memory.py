"""What one rank holds while it trains, by kind (`Held`), and how many bytes its parameters take (`State`).

In: sizes of parts, precision, optimizer. Out: bytes of weights, gradients, optimizer state, copies and temporaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..specs import BF16, FP8, AdamW, BF16Mixed, Experiment, Muon
from .sizes import PartSize

__all__ = ["Held", "State"]


class State:
    """Bytes per parameter under an experiment's precision and optimizer."""

    def __init__(self, experiment: Experiment, on_gpu: bool) -> None:
        self.narrow = isinstance(experiment.precision, BF16)  # weights and gradients of two bytes over fp32 masters
        self.float8 = isinstance(experiment.precision, FP8)  # factors of products in layers
        self.mixed = on_gpu and isinstance(experiment.precision, BF16Mixed)
        self.on_gpu = on_gpu
        self.number_bytes = 2 if self.mixed or self.narrow else 4  # of an activation
        self.weight_bytes = 2 if self.narrow else 4  # and of its gradient
        self.left_out: tuple[str, ...] = ()
        target = type(experiment.optimizer).__target__
        self.muon = target == Muon.__target__  # one momentum for the matrices of layers
        if not self.muon and target != AdamW.__target__:
            name = type(experiment.optimizer).__name__
            self.left_out = (f"{name} (counted as two fp32 numbers per parameter, as AdamW)",)

    def bytes_of(self, part: PartSize, in_layer: bool) -> tuple[int, int, int]:
        """Weights, gradients, optimizer state."""
        lower = 2 * part.parameters if self.narrow else 0  # the halves of the masters that the weights lack
        return (
            self.weight_bytes * part.parameters,
            self.weight_bytes * part.parameters,
            (4 if self.muon and in_layer else 8) * part.matrices + 8 * part.vectors + lower,
        )

    def casts(self, part: PartSize) -> int:
        """Copies of linear layers' weights in bfloat16, from their first use in a step to its end."""
        return 2 * part.matrices if self.mixed and part.flops else 0

    def update(self, parts: Sequence[tuple[PartSize, bool]]) -> int:
        """The most bytes that the optimizer's step makes for itself, over parts and whether they are in a layer.

        AdamW: a square root in fp32, on a GPU for all of a group at once, on a CPU twice for one matrix at a time. Muon:
        one matrix at a time, its direction in fp32 and the iteration's tensors, in bfloat16 on a GPU. Masters are made
        one parameter at a time, with their gradient, and come apart into two halves.
        """
        in_layers = [part for part, in_layer in parts if in_layer]
        beside = [part.matrices for part, in_layer in parts if not in_layer]
        largest = max((part.largest for part in in_layers), default=0)
        muon = (8 if self.on_gpu else 12) * largest + (4 if self.on_gpu else 8) * self._square(in_layers)
        if self.narrow:
            one = max(largest, *beside, 0)
            adam = (12 if self.on_gpu else 16) * one
            return max(adam, 8 * largest + muon) if self.muon else adam
        if self.muon:
            adam = 4 * sum(beside) if self.on_gpu else 8 * max(beside, default=0)
            return max(adam, muon)
        groups = (sum(part.matrices for part in in_layers), sum(beside))
        return 4 * max(groups) if self.on_gpu else 8 * max(largest, *beside, 0)

    @staticmethod
    def _square(in_layers: Sequence[PartSize]) -> int:
        """Entries of the largest Gram matrix: of the short side of a matrix with itself."""
        return max((part.short_side**2 for part in in_layers), default=0)


class Held(NamedTuple):
    """Bytes by kind. `weights` are copies made during a step, `buffers` messages."""

    weights: int = 0
    gradients: int = 0
    activations: int = 0
    buffers: int = 0
    loss: int = 0

    def plus(self, other: Held, times: int = 1) -> Held:
        """With `other` added `times` times."""
        return Held(*(a + times * b for a, b in zip(self, other)))

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self)
