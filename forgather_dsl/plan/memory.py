"""What one rank holds while it trains: bytes of its parameters, and of microbatches in flight on its stages.

In: sizes of parts, precision, optimizer, recomputing, the rank's actions. Out: bytes. The peak is found by walking the
rank's own actions: what F puts down, B takes away; after I the inputs and output gradients of linear layers stay until W.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..specs import BF16, AdamW, BF16Mixed, Experiment, FullRecompute, Muon
from ..specs.experiment import num_shards
from .actions import Action
from .sizes import ModelSize, PartSize

__all__ = ["Held", "StageCost", "State", "peak"]

STEP_COPY = 4  # bytes per number that AdamW updates on a GPU: torch's foreach form makes one fp32 temporary of all
MASTER_COPY = 12  # bytes per number of one parameter: its master, its gradient and a temporary of AdamW's, fp32 each


class State:
    """Bytes per parameter under an experiment's precision and optimizer."""

    def __init__(self, experiment: Experiment, on_gpu: bool) -> None:
        mixed = on_gpu and isinstance(experiment.precision, BF16Mixed)
        self.narrow = isinstance(experiment.precision, BF16)  # weights and gradients too, over exact fp32 masters
        self.on_gpu = on_gpu
        self.number_bytes = 2 if mixed or self.narrow else 4  # of an activation
        self.left_out: tuple[str, ...] = ()
        target = type(experiment.optimizer).__target__
        self.matrix_state = 8  # two fp32 moments
        if target == Muon.__target__:
            self.matrix_state = 4  # one momentum for the matrices of layers
        elif target != AdamW.__target__:
            name = type(experiment.optimizer).__name__
            self.left_out = (f"{name} (counted as two fp32 numbers per parameter, as AdamW)",)

    def bytes_of(self, part: PartSize, in_layer: bool) -> tuple[int, int, int]:
        """Weights, gradients, optimizer state. Under mixed precision linear layers keep a bf16 copy during a step; bf16
        weights have the lower halves of their masters beside the optimizer's state.
        """
        moments = (self.matrix_state if in_layer else 8) * part.matrices + 8 * part.vectors
        if self.narrow:
            return 2 * part.parameters, 2 * part.parameters, moments + 2 * part.parameters
        copies = 2 * part.matrices if self.number_bytes == 2 and part.flops else 0
        return 4 * part.parameters + copies, 4 * part.parameters, moments

    def temporary(self, parts: Sequence[tuple[PartSize, bool]]) -> int:
        """Bytes that the optimizer takes for a moment, of parts (and whether they are in a layer): under exact masters a
        few fp32 copies of one parameter at a time, else on a GPU one of whatever AdamW takes.
        """
        if self.narrow:
            return MASTER_COPY * max((part.matrices // (4 if in_layer else 1) for part, in_layer in parts), default=0)
        if not self.on_gpu:
            return 0
        return STEP_COPY * sum(
            part.parameters if self.matrix_state == 8 or not in_layer else part.vectors for part, in_layer in parts
        )


class Held(NamedTuple):
    """Bytes of activations and of the loss."""

    activations: int
    loss: int

    def plus(self, other: Held, times: int = 1) -> Held:
        """With `other` added `times` times."""
        return Held(self.activations + times * other.activations, self.loss + times * other.loss)


class StageCost(NamedTuple):
    """What one microbatch costs on one stage."""

    kept: Held  # from F to B or I
    owed: Held  # from I to W
    working: Held  # while an action runs

    @classmethod
    def of(
        cls, experiment: Experiment, size: ModelSize, ranges: Sequence[range], stage: int, number_bytes: int
    ) -> StageCost:
        """One microbatch on stage `stage` of those with these layers; activations take `number_bytes` each."""
        tokens = experiment.microbatch_size * experiment.seq_len
        layers = [size.layers[index] for index in ranges[stage]]
        first, last = stage == 0, stage == len(ranges) - 1

        def held(numbers: int, fp32: int = 0) -> int:
            return tokens * (number_bytes * numbers + 4 * fp32)

        kept = [held(layer.kept, layer.kept_fp32) for layer in layers]
        working = max((held(layer.transient) for layer in layers), default=0)
        if isinstance(experiment.recompute, FullRecompute):
            working += max(kept, default=0)  # one layer at a time is computed again
            kept = [held(size.dim)] * len(layers)
        owed = sum(held(layer.owed) for layer in layers) + (held(size.embedding.owed) if first else 0)
        if not last:
            return cls(Held(sum(kept) + held(size.dim), 0), Held(owed, 0), Held(working, 0))
        if shards := num_shards(experiment):
            tail = held(size.final_norm.kept + size.dim, size.final_norm.kept_fp32)
            parts = shards * held(size.dim) + 4 * tokens * size.dim  # combined in fp32
            return cls(Held(sum(kept) + tail, 0), Held(owed, 0), Held(max(working, parts), 0))
        tail = size.final_norm + size.head
        logits = tokens * 4 * size.vocab_size  # fp32
        return cls(
            kept=Held(sum(kept) + held(tail.kept, tail.kept_fp32), logits),  # the loss keeps its log-probabilities
            owed=Held(owed + held(size.dim), held(size.vocab_size)),
            working=Held(working, 2 * logits),
        )

    @classmethod
    def of_shard(cls, experiment: Experiment, size: ModelSize, shards: int, number_bytes: int) -> StageCost:
        """One microbatch on the largest shard of a spread head: hidden states and the softmax over its rows, F to W."""
        rows = -(-size.vocab_size // shards)
        tokens = experiment.microbatch_size * experiment.seq_len
        kept = Held(tokens * number_bytes * size.dim, tokens * number_bytes * rows)
        message = tokens * number_bytes * size.dim
        return cls(
            kept, kept, Held(message, tokens * 4 * rows if number_bytes < 4 else 0)
        )  # F takes kept, W gives owed


def peak(actions: Sequence[Action], stages: Sequence[StageCost]) -> Held:
    """The most that a rank's actions hold at once; only the rank's own order matters."""
    now = most = Held(0, 0)
    for action in actions:
        stage = stages[action.stage]
        if action.kind == "F":
            now = now.plus(stage.kept)
        during = now if action.kind == "W" else now.plus(stage.working)
        most = max(most, during, key=sum)
        if action.kind in "BI":
            now = now.plus(stage.kept, -1)
        if action.kind == "I":
            now = now.plus(stage.owed)
        if action.kind == "W":
            now = now.plus(stage.owed, -1)
    return most
