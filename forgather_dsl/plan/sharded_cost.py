"""What one microbatch costs a rank of FSDP2 (parallel/sharded.py): besides activations, the weights and gradients that come and go.

In: as `stage_cost`. Out: `StageCost`. A layer's weights are there whole while it runs, and what the next one is gathered into;
in the backward also its whole gradients, and those of the layer before on their way to their owners. The head (with a tied
embedding) is whole from the start of F to the end of B. tests/train/test_exact_sharded.py checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..specs import FSDP2, Experiment
from .kept import LayerCost
from .memory import Held, State
from .sizes import ModelSize, PartSize
from .stage_cost import StageCost, Walk

__all__ = ["is_cut", "of_shards", "own_rows"]


def is_cut(experiment: Experiment) -> bool:
    """Whether weights are cut by rows among ranks."""
    parallel = experiment.parallel
    return isinstance(parallel, FSDP2) and parallel.shards * parallel.replicas > 1


def own_rows(part: PartSize, ranks: int) -> PartSize:
    """What one of so many ranks has of a part whose matrices are cut by rows as evenly as can be; vectors are whole."""
    return part._replace(matrices=-(-part.matrices // ranks), largest=-(-part.largest // ranks))


def of_shards(
    experiment: Experiment, size: ModelSize, ranges: Sequence[range], stage: int, state: State, policy: str
) -> StageCost:
    """As `StageCost.of`, for the one stage of FSDP2."""
    return _ShardedWalk(experiment, size, ranges, stage, state, policy).cost()


class _ShardedWalk(Walk):
    def __init__(self, experiment: Experiment, *about: Any) -> None:
        super().__init__(experiment, *about)
        assert isinstance(experiment.parallel, FSDP2)
        self.parallel = experiment.parallel
        self.whole = False  # whether gradients are those of whole matrices, on their way
        self.really_first = False
        self.sending = Held()  # what the last reduce-scatter was sent from, until the next one
        self.position = 0

    def gathered(self, layer: LayerCost) -> int:
        """Bytes of a layer's weights, whole."""
        return self.state.number_bytes * layer.size.matrices

    def beside(self, part: PartSize) -> int:
        """The same of embedding or head, whose format is that of the weights; so are their gradients."""
        return self.state.weight_bytes * part.matrices

    @property
    def in_root(self) -> int:
        """Bytes of what is whole as long as a microbatch runs."""
        return self.beside(self.size.head)

    def gradient_of(self, part: PartSize) -> Held:
        """Of this rank's rows, or of all on their way."""
        in_layer = any(part is layer.size for layer in self.layers)
        if self.size.tied and part is self.size.embedding:
            return Held()  # it is the head's
        vectors = self.state.gradient_bytes * part.vectors
        if self.whole:
            each = self.state.number_bytes if in_layer else self.state.weight_bytes
            return Held(gradients=each * part.matrices + vectors)
        rows = 0 if self.parallel.offload else own_rows(part, self.parallel.shards).matrices
        return Held(gradients=self.state.gradient_bytes * rows + vectors)

    def product(self, part: PartSize) -> Held:
        """A layer's gradients have the format of its products."""
        return Held() if part.short_side else super().product(part)

    def casts(self, parts: Sequence[PartSize]) -> int:
        """Of the head alone: layers come in the format of products."""
        return self.state.casts(self.size.head)

    def embed(self) -> None:
        """The root is gathered, then the embedding, then what the first layer will be gathered into."""
        self.add(Held(weights=self.in_root))
        self.touch(Held(buffers=self.in_root))
        self.position = 0
        mine = 0 if self.size.tied else self.beside(self.size.embedding)
        self.add(Held(weights=mine))
        self.touch(Held(buffers=mine))
        ahead = Held(buffers=self.gathered(self.layers[0]))
        self.touch(ahead.plus(self.numbers(self.size.dim)).plus(self.embedded()))
        if self.parallel.reshard_after_forward:
            self.add(Held(weights=-mine))

    def layer_forward(self, layer: LayerCost) -> None:
        """Its weights, and room for the next one's."""
        here, ahead = Held(weights=self.gathered(layer)), Held(buffers=self._next(self.position + 1))
        self.position += 1
        self.touch(here.plus(Held(buffers=here.weights)))
        self.add(here.plus(ahead))
        super().layer_forward(layer)
        self.add(ahead, -1)
        if self.parallel.reshard_after_forward:
            self.add(here, -1)

    def _next(self, position: int) -> int:
        return self.gathered(self.layers[position]) if 0 <= position < len(self.layers) else 0

    def backward(self, deferring: bool, first: bool) -> Held:
        """Whole gradients come in every backward; in the first one this rank's rows of them stay."""
        self.whole, self.really_first, self.position, self.sending = True, first, len(self.layers), Held()
        super().backward(deferring, True)
        ends = [self.size.head] if self.size.tied else [self.size.head, self.size.embedding]
        self.add(self.sending, -1)
        self.add(Held(weights=-self.in_root))
        for part in ends:
            sent = self.beside(part)
            self.reduced(sent, sent)
        self.whole = False
        return self.most

    def layer_backward(self, layer: LayerCost, deferring: bool, first: bool) -> None:
        """Its weights, room for those of the one before, its gradients, and a copy of these to be sent."""
        self.position -= 1
        keeps = not self.parallel.reshard_after_forward
        here, ahead = Held(weights=self.gathered(layer)), Held(buffers=self._next(self.position - 1))
        if keeps:
            here = ahead = Held()
        self.touch(here.plus(Held(buffers=here.weights)))
        self.add(here.plus(ahead))
        super().layer_backward(layer, deferring, first)
        self.add(here, -1)
        if keeps:
            self.add(Held(weights=-self.gathered(layer)))
        self.add(self.sending, -1)
        sent = self.state.gradient_bytes * layer.size.matrices
        self.sending = Held(buffers=sent)
        self.reduced(self.state.number_bytes * layer.size.matrices, sent)
        self.add(self.sending)
        self.add(ahead, -1)

    def reduced(self, gradients: int, sent: int) -> None:
        """Whole gradients are copied to be sent, and go; on a CPU what comes takes as much again."""
        self.touch(Held(buffers=sent))
        self.add(Held(gradients=-gradients))
        rows = sent // self.parallel.shards
        self.touch(Held(buffers=sent if self.state.on_gpu else 2 * sent, gradients=rows))
        if self.really_first and not self.parallel.offload:
            self.add(Held(gradients=rows))
