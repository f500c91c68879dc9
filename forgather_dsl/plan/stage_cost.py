"""What one microbatch costs on one stage, in bytes: between its actions, and while each action runs.

In: sizes of parts, precision, recomputing, the layers of the stage. Out: `StageCost`, found by going through the layers in
the order that F, B, I and W do, with what each puts down and takes away. `train/exact.py` checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ..specs import ChunkedCrossEntropy, Experiment
from ..specs.experiment import num_shards
from .factors import float8_factors
from .kept import WINDOW, LayerCost
from .masks import Masks
from .memory import Held, State, passes
from .sizes import ModelSize, PartSize

__all__ = ["LOSS_ROWS", "StageCost", "Walk"]

LOSS_ROWS = 128  # rows of a chunk's logits that are in fp32 at a time (train/chunked_loss.py)


class StageCost(NamedTuple):
    """What one microbatch costs on one stage. Six, `forward` to `first_weights`, are the most above what the rank held before the action."""

    kept: Held  # from F to B or I
    owed: Held  # from I to W
    lasting: Held  # from the first F to the end of the step: copies of weights, tables of positions
    gradients: Held  # from the first B or W to the end of the step
    forward: Held
    backward: Held
    inputs: Held  # of I
    weights: Held  # of W
    first_backward: Held  # of the first B, which makes the gradients
    first_weights: Held  # of the first W
    early: Held = Held()  # those of the gradients that the first I makes already: of the head under a chunked loss
    host: Held = Held()  # in the memory of the host, from F to B or I
    leaving: Held = Held()  # from F to the next I or B, and while those run: layers on their way to the host, or back

    @property
    def working(self) -> Held:
        """The most that F or B needs while it runs, beside what is kept from its start; I needs `inputs`."""
        forward = self.forward.plus(self.kept, -1).plus(self.lasting, -1)  # with what is leaving
        return max(forward, self.backward, key=sum)

    @classmethod
    def of(
        cls, experiment: Experiment, size: ModelSize, ranges: Sequence[range], stage: int, state: State, policy: str
    ) -> StageCost:
        """One microbatch on stage `stage` of those with these layers, which keeps what `policy` says."""
        return Walk(experiment, size, ranges, stage, state, policy).cost()


class Walk:
    """Goes through a stage's layers as its actions do. `now` is what an action has come to, `most` its peak so far."""

    def __init__(
        self, experiment: Experiment, size: ModelSize, ranges: Sequence[range], stage: int, state: State, policy: str
    ) -> None:
        self.size, self.state = size, state
        self.tokens = experiment.microbatch_size * experiment.seq_len
        how = size.dim, policy, experiment.recompute.mlp_tiles, experiment.recompute.offload
        self.layers = [LayerCost.of(size.blocks[index], *how) for index in ranges[stage]]
        self.first, self.last = stage == 0, stage == len(ranges) - 1
        self.shards = num_shards(experiment)
        self.end = size.final_norm if self.shards else size.final_norm + size.head  # what the last stage has more
        loss = experiment.loss
        self.chunk = min(loss.chunk, self.tokens) if isinstance(loss, ChunkedCrossEntropy) and self.last else 0
        self.passing = passes(experiment, state)
        self.before = Held()  # of the part that arrived last: on its way to the host
        self.tables = 8 * experiment.seq_len * (getattr(experiment.model, "head_dim", None) or 0)  # of positions, fp32
        self.masks = Masks.of(experiment, ranges[stage], state.number_bytes)
        if experiment.isolate_documents:  # each microbatch has a context of its own, tables and all
            self.masks, self.tables = self.masks._replace(kept=self.masks.kept + self.tables), 0
        self.now = self.most = Held()

    def add(self, held: Held, times: int = 1) -> None:
        """Something that stays."""
        self.now = self.now.plus(held, times)
        self.touch(Held())

    def touch(self, held: Held) -> None:
        """Something that comes and goes."""
        self.most = max(self.most, self.now.plus(held), key=sum)

    def restart(self) -> None:
        """For the next action."""
        self.now = self.most = Held()

    def numbers(self, count: int, fp32: int = 0) -> Held:
        """Activations of so many numbers per token."""
        return Held(activations=self.tokens * (self.state.number_bytes * count + 4 * fp32))

    def logits(self, times: int, narrow: int = 0) -> Held:
        """Numbers per token and word, `times` of them in fp32, `narrow` in the format of activations."""
        words = self.tokens * self.size.vocab_size
        return Held(loss=words * (4 * times + self.state.number_bytes * narrow))

    def gradient_of(self, part: PartSize) -> Held:
        """What the first backward makes for a part's weights."""
        if part is self.size.embedding and self.state.leaving and not self.size.tied:
            return Held()  # its rows go to the host as they are
        if not self.size.tied or not (part is self.size.embedding or part is self.end):
            return Held(gradients=self.state.gradient_bytes * part.parameters)
        norm = self.size.final_norm.parameters if part is self.end else 0
        return Held(
            gradients=self.state.tied_gradient_bytes * (part.parameters - norm) + self.state.gradient_bytes * norm
        )

    def stays(self, part: PartSize) -> bool:
        """Whether a part's gradient is alive to the end of the step: a tied weight's two meet there."""
        return not self.passing or (self.size.tied and (part is self.size.embedding or part is self.end))

    def passed(self, part: PartSize, in_layer: bool) -> None:
        """All gradients of a part are there: it is updated and they go, or they are on their way while the next ones come."""
        if self.stays(part):
            return
        if self.state.leaving:
            self.add(self.before, -1)
            self.before = self.gradient_of(part)
            return
        self.touch(Held(gradients=self.state.update([(part, in_layer)])))
        self.add(self.gradient_of(part), -1)

    def embedded(self, backward: bool = False) -> Held:
        """Rows of the embedding as they are read, or their gradients as they are added, in the format of either."""
        each = self.state.gradient_bytes if backward else self.state.weight_bytes
        return Held(activations=self.tokens * each * self.size.dim)

    def product(self, part: PartSize) -> Held:
        """A weight's gradient in bfloat16, on its way into the fp32 sum; one format for both needs no such step."""
        apart = self.state.apart or (self.state.float8 and part.short_side)  # the head's product is not in float8
        return Held(activations=2 * part.largest if apart else 0)

    def factors(self, part: PartSize, kind: str) -> Held:
        """Beside the operands of a layer's largest product in F, B, I or W."""
        found = float8_factors(part, self.tokens, self.size.dim, kind) if part.short_side else 0  # the head has none
        return Held(activations=found * self.state.float8)

    def cost(self) -> StageCost:
        """All of it."""
        layers = [layer.size for layer in self.layers]
        parts = [*layers, *[self.size.embedding] * self.first, *[self.end] * self.last]
        copies = Held(weights=self.casts(parts), activations=self.tables)
        leaving = self.numbers(WINDOW * max((layer.host for layer in self.layers), default=0))
        forward = self.forward(copies.plus(leaving))
        kept = self.now.plus(copies, -1).plus(leaving, -1)
        backward, inputs, first = (self.backward(*how) for how in ((False, False), (True, False), (False, True)))
        owed = Held()
        for _, held in self.owed():
            owed = owed.plus(held)
        weights, first_weights = self.weights(first=False), self.weights(first=True)
        gradients = Held(gradients=sum(self.gradient_of(part).gradients for part in parts if self.stays(part)))
        early = self.gradient_of(self.size.head) if self.chunk and self.stays(self.end) else Held()
        host = self.numbers(sum(layer.host for layer in self.layers))
        most = forward, backward, inputs, weights, first, first_weights
        return StageCost(kept, owed, copies, gradients, *most, early, host, leaving)

    def casts(self, parts: Sequence[PartSize]) -> int:
        """Bytes of copies of weights in the format of products."""
        return sum(map(self.state.casts, parts))

    def forward(self, copies: Held) -> Held:
        """F, from the stage's input to its output or loss; `now` ends with what stays."""
        dim, wide = self.size.dim, int(self.state.number_bytes == 2)
        self.restart()
        self.add(copies)
        self.add(Held(activations=self.masks.kept))
        self.touch(Held(activations=self.masks.making))
        if self.first:
            self.embed()
        for layer in self.layers:
            self.layer_forward(layer)
        if not self.last:
            self.add(self.numbers(dim))
            return self.most
        self.add(self.numbers(self.end.kept, self.end.kept_fp32))
        if self.shards:
            self.add(self.numbers(dim))  # sent to the shards
        if self.shards or self.chunk:
            return self.most
        self.touch(self.logits(1 + wide, 1))  # as the head makes them, in fp32, and their log-softmax
        self.add(self.logits(1))
        return self.most

    def embed(self) -> None:
        """The rows of the embedding, and in the format of activations."""
        self.touch(self.numbers(self.size.dim).plus(self.embedded()))

    def layer_forward(self, layer: LayerCost) -> None:
        """One layer, to what it keeps."""
        self.touch(self.numbers(layer.running))
        self.add(self.numbers(*layer.kept))
        self.touch(self.factors(layer.size, "F"))
        self.touch(self.numbers(2 * self.size.dim))  # the last product's output, and the sum that the next one takes

    def owed(self) -> Iterator[tuple[PartSize, Held]]:
        """The parts in the order of a backward pass, and what each leaves from I to W."""
        if self.last and not self.shards and not self.chunk:
            yield self.end, self.logits(0, 1).plus(self.numbers(self.size.dim))
        for layer in reversed(self.layers):
            yield layer.size, self.numbers(layer.size.owed)
        if self.first:
            yield self.size.embedding, self.numbers(self.size.dim)

    def weights(self, first: bool) -> Held:
        """W, which lets go of each part's tensors as it is done with them."""
        self.restart()
        for part, owed in self.owed():
            if first or not self.stays(part):
                self.add(self.gradient_of(part))
            self.touch(self.product(part) if part.flops else self.embedded(backward=True))
            self.touch(self.factors(part, "W"))
            self.add(owed, -1)
            self.passed(part, in_layer=any(part is layer.size for layer in self.layers))
        self.before = Held()
        return self.most

    def backward(self, deferring: bool, first: bool) -> Held:
        """B, or I when `deferring`; the first B of a step makes the gradients as it goes."""
        self.restart()
        self.add(self.numbers(self.size.dim))  # the gradient that goes from layer to layer
        if self.last:
            self.tail(deferring, first)
        for number, layer in enumerate(reversed(self.layers)):
            if number == 1 and not self.last and not deferring:
                self.add(self.numbers(self.size.dim))  # the one that came in stays to the end; in I it is owed anyway
            self.add(self.numbers(layer.host), -(number == len(self.layers) - 1))  # the last one has none beside it
            self.layer_backward(layer, deferring, first)
            if deferring:
                self.add(self.numbers(layer.size.owed))
        if self.first and (first or not self.stays(self.size.embedding)):
            self.add(self.gradient_of(self.size.embedding))
        if self.first:
            self.touch(self.embedded(backward=True))
        if self.first and not deferring:
            self.passed(self.size.embedding, in_layer=False)
        self.before = Held()
        return self.most

    def layer_backward(self, layer: LayerCost, deferring: bool, first: bool) -> None:
        """At the most where the MLP is; by then the first B has made the gradient of its last matrix, of the others later."""
        first = first or (self.passing and not deferring)
        one = Held(gradients=self.state.gradient_bytes * layer.size.largest)
        if first:
            self.add(one)
        for numbers, fp32 in layer.inputs if deferring else layer.backward:
            self.touch(self.numbers(numbers, fp32))
        kept, wide = layer.kept
        again = self.numbers(layer.size.kept - kept, layer.size.kept_fp32 - wide)  # all there is when its products run
        self.touch(again.plus(self.factors(layer.size, "I" if deferring else "B")) if self.state.float8 else Held())
        if not deferring:
            self.touch(self.product(layer.size))
        self.add(self.numbers(kept, wide), -1)
        if first:
            self.add(self.gradient_of(layer.size).plus(one, -1))
        if not deferring:
            self.passed(layer.size, in_layer=True)

    def tail(self, deferring: bool, first: bool) -> None:
        """The loss, the head and the final norm."""
        tail = self.end
        if self.shards:
            self.touch(self.numbers(self.shards * self.size.dim, self.size.dim))  # their parts, put together in fp32
            self.add(self.numbers(-tail.kept, -tail.kept_fp32))
            return
        if self.chunk:
            self.chunks((first or not self.stays(tail)) and not deferring)
            self.touch(self.numbers(self.size.dim))
            self.add(self.numbers(tail.kept, tail.kept_fp32), -1)
            if not deferring:
                self.passed(tail, in_layer=False)
            return
        self.touch(self.logits(2))  # of the log-softmax, and of the logits
        self.add(self.logits(1), -1)
        if (first or not self.stays(tail)) and not deferring:
            self.add(self.gradient_of(tail))
        if not deferring:
            self.touch(self.logits(0, 1).plus(self.product(tail)))
        self.touch(self.logits(0, 1).plus(self.numbers(self.size.dim)))
        self.add(self.numbers(tail.kept, tail.kept_fp32), -1)
        if deferring:
            self.add(self.logits(0, 1).plus(self.numbers(self.size.dim)))
        else:
            self.passed(tail, in_layer=False)

    def chunks(self, first: bool) -> None:
        """Loss and head by chunks of tokens; of a few rows there are logits and two gradients of theirs in fp32."""
        words, rows = self.size.vocab_size, min(LOSS_ROWS, self.chunk)
        logits = Held(loss=self.chunk * words * self.state.number_bytes)
        made = self.gradient_of(self.end) if first else Held()
        if self.chunk < self.tokens:  # else the gradient is made when all of the loss is done
            self.add(made)
        self.touch(logits.plus(Held(loss=12 * rows * words)))
        if self.chunk == self.tokens:
            self.add(made)
        self.touch(logits.plus(self.product(self.size.head)))
