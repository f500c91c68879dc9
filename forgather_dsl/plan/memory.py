"""What one rank holds while it trains, by kind (`Held`), and how many bytes its parameters take (`State`).

In: sizes of parts, precision, optimizer. Out: bytes of weights, gradients, optimizer state, copies and temporaries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..specs import BF16, FP8, SGD, Adafactor, AdamW, BF16Mixed, Experiment, InBackward, Lion, Muon, OnHost
from ..specs.experiment import num_microbatches
from .sizes import Copied, ModelSize, PartSize, model_size

__all__ = ["Held", "State", "passes"]


CHUNK = {
    True: 1 << 23,
    False: 1 << 18,
}  # numbers that an optimizer updates at a time, on a GPU or not (train/optim/engine.py)
MOMENT = {"fp32": 4.0, "bf16": 2.0, "8bit": 1 + 4 / 256}  # bytes of one number kept for every weight of a matrix
BESIDE = {"exact": 2, "kahan": 2}  # bytes beside a bfloat16 weight, by rounding
MOMENTS = {AdamW.__target__: 2, Lion.__target__: 1, SGD.__target__: 1, Adafactor.__target__: 0, Muon.__target__: 2}


class State:
    """Bytes per parameter under an experiment's precision and optimizer."""

    def __init__(self, experiment: Experiment, on_gpu: bool) -> None:
        precision, optimizer = experiment.precision, experiment.optimizer
        self.narrow = isinstance(precision, BF16)  # weights and gradients of two bytes
        self.float8 = isinstance(precision, FP8)  # factors of products in layers
        self.mixed = on_gpu and isinstance(precision, BF16Mixed)
        self.on_gpu = on_gpu
        self.number_bytes = 2 if self.mixed or self.narrow else 4  # of an activation
        self.weight_bytes = 2 if self.narrow else 4
        wide = isinstance(precision, BF16) and precision.gradients == "fp32"
        self.on_host = isinstance(experiment.update, OnHost)  # masters and state
        self.leaving = isinstance(experiment.update, OnHost) and experiment.update.gradients == "host"
        self.gradient_bytes = 4 if wide and not self.leaving else self.weight_bytes
        self.apart = self.gradient_bytes > self.number_bytes  # a product is made first, then added in the sum's format
        self.tied_gradient_bytes = 4 if self.leaving else self.gradient_bytes  # two of them are added up on the device
        self.rounding = precision.rounding if isinstance(precision, BF16) else ""
        self.states: str = getattr(optimizer, "states", "fp32")
        target = type(optimizer).__target__
        self.muon = target == Muon.__target__  # one momentum for the matrices of layers
        self.factored = target == Adafactor.__target__  # one number for each row and column
        self.moments = MOMENTS.get(target, 2)
        if isinstance(optimizer, SGD) and not optimizer.momentum:
            self.moments = 0
        self.nesterov = bool(getattr(optimizer, "nesterov", False))
        self.made = self._made(experiment)
        self.dim = experiment.model.dim
        self.left_out: tuple[str, ...] = ()
        self.known = target in MOMENTS
        if not self.known:
            name = type(optimizer).__name__
            self.left_out = (f"{name} (counted as two fp32 numbers per parameter, as AdamW)",)

    def size_of(self, experiment: Experiment) -> ModelSize:
        """Sizes of the parts. On a GPU heads share keys and values without copies in flash attention alone: numbers of two
        bytes, no mask, at most 256 of a head (models/attention.py).
        """
        copied: Copied = "never"
        if self.on_gpu:
            head = getattr(experiment.model, "head_dim", None) or 0
            always = experiment.isolate_documents or self.number_bytes == 4 or head > 256
            copied = "always" if always else "in windows"
        return model_size(experiment.model, experiment.seq_len, copied)

    def _made(self, experiment: Experiment) -> float:
        """Numbers that an update makes for each of a chunk, beside copies: a denominator, but for torch's fused kernel; a sign;
        a decayed gradient; sums of pairs of rows, or a direction."""
        optimizer = experiment.optimizer
        if isinstance(optimizer, SGD):
            return float(bool(optimizer.weight_decay)) + (optimizer.nesterov and self.moments > 0)
        if self.factored:
            return 0.0 if self.narrow else 1.75
        return float(isinstance(optimizer, Lion) or not self.on_gpu)

    def bytes_of(self, part: PartSize, in_layer: bool) -> tuple[int, int, int]:
        """Weights, gradients, optimizer state; on the device."""
        weights, gradients = self.weight_bytes * part.parameters, self.gradient_bytes * part.parameters
        beside = BESIDE.get(self.rounding, 0) * part.parameters
        return weights, gradients, 0 if self.on_host else self._moments(part, in_layer) + beside

    def on_host_of(self, part: PartSize, in_layer: bool) -> int:
        """Bytes on the host: fp32 masters, optimizer state, and the sums of gradients that leave the device."""
        if not self.on_host:
            return 0
        return (8 if self.leaving else 4) * part.parameters + self._moments(part, in_layer)

    def _moments(self, part: PartSize, in_layer: bool) -> int:
        if self.factored:
            return 4 * (self._sides(part) + part.vectors)
        moments = 1 if self.muon and in_layer else self.moments
        return int(moments * MOMENT[self.states] * part.matrices) + 4 * self.moments * part.vectors

    def _sides(self, part: PartSize) -> int:
        """Rows and columns of all matrices together: each has `dim` on one side, and not many more than there must be."""
        return part.matrices // self.dim + self.dim * -(-part.matrices // part.largest) if part.matrices else 0

    def casts(self, part: PartSize) -> int:
        """Copies of linear layers' weights in bfloat16, from their first use in a step to its end."""
        return 2 * part.matrices if self.mixed and part.flops else 0

    def update(self, parts: Sequence[tuple[PartSize, bool]]) -> int:
        """The most bytes that the optimizer's step makes for itself, over parts and whether they are in a layer.

        One matrix at a time, and of that a chunk of rows: fp32 copies of what is not kept in fp32, and what the arithmetic
        makes. Muon besides: a matrix's direction and the iteration's tensors, in bfloat16 on a GPU. An optimizer that is not
        known here has masters and gradients of a whole matrix.
        """
        if self.on_host:
            return 0
        in_layers = [part.largest for part, in_layer in parts if in_layer]
        beside = [part.matrices for part, in_layer in parts if not in_layer]
        largest = max((*in_layers, *beside), default=0)
        if not self.known:
            groups = (sum(part.matrices for part, in_layer in parts if in_layer), sum(beside))
            return (
                (12 if self.on_gpu else 16) * largest
                if self.narrow
                else 4 * max(groups)
                if self.on_gpu
                else 8 * largest
            )
        if not self.muon:
            return self._rows(largest, self.moments, self.made)
        square = self._square([part for part, in_layer in parts if in_layer])
        muon = self._orthogonal(max(in_layers, default=0), square)
        return max(muon, self._rows(max(beside, default=0), self.moments, self.made))

    def _rows(self, largest: int, moments: int, made: float) -> int:
        """Of a chunk of the largest matrix: fp32 copies of weights and gradients if they are narrow and of moments, and what
        the arithmetic makes (`made` numbers for each), what reading or writing the formats makes; whichever is the most."""
        copied = 0 if self.states == "fp32" else moments
        narrow = int(self.narrow)
        reading = narrow + int(self.gradient_bytes == 2) + copied + max(made, float(self.states == "8bit"))
        keeping = narrow + copied + {"fp32": 0, "bf16": 2, "8bit": 1}[self.states] * bool(copied)
        writing = narrow + {"stochastic": 2, "exact": 1}.get(self.rounding, 0)
        return int(4 * max(reading, keeping, writing) * min(largest, CHUNK[self.on_gpu]))

    def _orthogonal(self, largest: int, square: int) -> int:
        """Of one matrix: the iteration's tensors; before it the direction beside a chunk of momentum, after it beside weights."""
        number = 2 if self.on_gpu else 4
        return number * largest + max(number * (largest + 2 * square), self._rows(largest, 1, float(self.nesterov)))

    @staticmethod
    def _square(in_layers: Sequence[PartSize]) -> int:
        """Entries of the largest Gram matrix: of the short side of a matrix with itself."""
        return max((part.short_side**2 for part in in_layers), default=0)


def passes(experiment: Experiment, state: State) -> bool:
    """Whether every backward frees its gradients: they leave for the host, or the one microbatch of a step updates."""
    return state.leaving or (isinstance(experiment.update, InBackward) and num_microbatches(experiment) == 1)


class Held(NamedTuple):
    """Bytes by kind. `weights` are copies made during a step, `buffers` messages."""

    weights: int = 0
    gradients: int = 0
    activations: int = 0
    buffers: int = 0
    loss: int = 0

    def plus(self, other: Held, times: int = 1) -> Held:
        """With `other` added `times` times."""
        a, b, c, d, e = self  # written out: a plan does this a million times
        v, w, x, y, z = other
        return Held(a + times * v, b + times * w, c + times * x, d + times * y, e + times * z)

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(self)
