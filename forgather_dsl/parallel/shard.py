"""A spread head: the output head cut by rows of the vocabulary, a shard on every rank, and the loss they make together.

In: normed hidden states, targets. Out: of each shard one message, a `Partial`, with its share of the loss and of the hidden
states' gradient, taken with the shard's own sum of exponentials and rescaled where all of them meet. So one exchange is
enough; the answer, the normaliser of every token, is what the shard's weight gradient waits for. Cross entropy only.
After Yeung et al., Balancing Pipeline Parallelism with Vocabulary Parallelism (arXiv 2411.05288), algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn as nn

from forgather_dsl.data.loader import IGNORED
from forgather_dsl.models.init import generator_seed, initialise
from forgather_dsl.models.parts import drop_part, part_of
from forgather_dsl.parallel.stage import path_of
from forgather_dsl.parallel.weight_gradients import WeightGradients, accumulate_weight

__all__ = ["Combined", "HeadShard", "Partial", "Rows", "Targets", "combine", "rows_of", "valid_tokens"]


def rows_of(vocab_size: int, shard: int, num_shards: int) -> range:
    """The rows of the head that a shard holds; when they do not divide evenly, earlier shards have one more."""
    size, more = divmod(vocab_size, num_shards)
    start = shard * size + min(shard, more)
    return range(start, start + size + (shard < more))


@dataclass(frozen=True)
class Rows:
    """Which rows of a tensor a rank has."""

    shape: tuple[int, ...]
    """Of the whole tensor."""
    start: int
    count: int


class Targets(NamedTuple):
    """The targets of one microbatch `[batch, seq]` that fall into a shard's rows."""

    positions: torch.Tensor
    """Which tokens, in the flattened microbatch."""
    columns: torch.Tensor
    """Which of the shard's rows."""

    @classmethod
    def of(cls, targets: torch.Tensor, rows: range, device: torch.device) -> Targets:
        """Those of `targets`, on the host, that are in `rows`."""
        flat = targets.flatten()
        positions = ((flat >= rows.start) & (flat < rows.stop)).nonzero().flatten()
        return cls(positions.to(device), (flat[positions] - rows.start).to(device))


class Partial(NamedTuple):
    """What a shard knows of a microbatch's loss, as views of one buffer of bytes: that is the message.

    `normaliser [tokens]` is the log of the sum of exponentials over the shard's rows and `logits [n]` are those of the n
    targets in them, fp32. For the backward pass `gradient [tokens, dim]`: the expected row under the shard's own
    softmax, the target's left out; `targets [n, dim]`: the targets' rows. In evaluation these two are empty.
    """

    buffer: torch.Tensor
    normaliser: torch.Tensor
    logits: torch.Tensor
    gradient: torch.Tensor
    targets: torch.Tensor

    @staticmethod
    def num_bytes(tokens: int, n: int, dim: int, dtype: torch.dtype) -> int:
        """Size of the message; `dim` 0 in evaluation."""
        return (tokens + n) * (4 + dim * dtype.itemsize)

    @classmethod
    def view(cls, buffer: torch.Tensor, tokens: int, n: int, dim: int, dtype: torch.dtype) -> Partial:
        """The parts of a message."""
        numbers = buffer[: 4 * (tokens + n)].view(torch.float32)
        matrix = buffer[4 * (tokens + n) :].view(dtype).view(tokens + n, dim)
        return cls(buffer, numbers[:tokens], numbers[tokens:], matrix[:tokens], matrix[tokens:])


class _Kept(NamedTuple):
    """From F to W: what the weight gradient is made of."""

    hidden: torch.Tensor  # [tokens, dim]
    softmax: torch.Tensor  # [tokens, rows], the shard's own, the targets' entries 0
    normaliser: torch.Tensor
    logits: torch.Tensor
    targets: Targets


class _Window:
    """All numbers of a weight in one dimension, of which those from `first` on are kept, as many as `kept` has."""

    def __init__(self, kept: torch.Tensor, first: int, count: int) -> None:
        self.kept, self.first, self.count = kept, first, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: slice) -> _Part:
        return _Part(self, place.start, place.stop)


class _Part:
    """Some of them."""

    def __init__(self, window: _Window, start: int, stop: int) -> None:
        self.window, self.start, self.stop = window, start, stop

    def copy_(self, values: torch.Tensor) -> None:
        """Keep what lies in the window."""
        kept, first = self.window.kept, self.window.first
        begin, end = max(self.start, first), min(self.stop, first + len(kept))
        if begin < end:
            kept[begin - first : end - first].copy_(values[begin - self.start : end - self.start])


class HeadShard:
    """The rows of the head that rank `shard` of `num_shards` holds, as stage `index` of a schedule.

    `model` is taken over and emptied. Raises ValueError for a head that cannot be cut: tied to the embedding, not a plain
    nn.Linear, with a bias, or of fewer rows than shards.
    """

    def __init__(
        self,
        model: Any,
        index: int,
        shard: int,
        num_shards: int,
        device: torch.device,
        autocast: torch.dtype | None = None,
    ) -> None:
        head = part_of(model, "head")
        if type(head) is not nn.Linear or head.bias is not None:
            raise ValueError(
                f"the head is {head}, and only a plain nn.Linear without bias can be spread: leave out spread_head"
            )
        if model.tied:
            raise ValueError("a head tied to the embedding cannot be spread: write tie_embeddings=False")
        self.model, self.index, self.device, self.autocast = model, index, device, autocast
        self.shape = tuple(head.weight.shape)
        self.vocab_size, self.dim = self.shape
        if self.vocab_size < num_shards:
            raise ValueError(f"{self.vocab_size} rows of the head do not go round {num_shards} ranks")
        self.rows = rows_of(self.vocab_size, shard, num_shards)
        self.name = f"{path_of(model, head)}.weight"
        self.dtype: torch.dtype = autocast or head.weight.dtype  # of activations
        drop_part(model, "embed")
        drop_part(model, "norm")
        for number in range(len(model.layers)):
            model.layers[number] = None
        self.weight = nn.Parameter(torch.empty(len(self.rows), self.dim, dtype=head.weight.dtype, device=device))
        self.gradients = WeightGradients()
        self.needed: Callable[[int], None] | None = None
        """Called with END before a forward."""
        self._kept: dict[int, _Kept] = {}

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """First weights: those of the whole head, of which the shard keeps its rows; drawn in chunks where the model says how."""
        if getattr(self.model, "init", None) is not None:
            generator = torch.Generator("cpu").manual_seed(generator_seed(seed, self.name))
            window = _Window(self.weight.view(-1), self.rows.start * self.dim, math.prod(self.shape))
            self.model.init.fill(self.name, window, len(self.model.layers), generator)
            return
        initialise(self.model, seed, device="cpu")
        self.weight.copy_(part_of(self.model, "head").weight[self.rows.start : self.rows.stop])
        self.model.to("meta")

    @property
    def described(self) -> str:
        """For messages."""
        return f"stage {self.index} (rows {self.rows.start} to {self.rows.stop - 1} of the head)"

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The shard, under the full name of the head's weight."""
        yield self.name, self.weight

    @torch.no_grad()
    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`hidden [..., dim]` to `[..., rows]`."""
        return hidden @ self.gradients.cast(self.weight, self.dtype).t()

    @torch.no_grad()
    def forward(self, hidden: torch.Tensor, targets: Targets, k: int, training: bool) -> Partial:
        """The shard's part of the loss of microbatch `k`, from `hidden [batch, seq, dim]`."""
        weight, hidden = self.gradients.cast(self.weight, self.dtype), hidden.flatten(0, 1)
        tokens, n, dim = len(hidden), len(targets.positions), self.dim if training else 0
        size = Partial.num_bytes(tokens, n, dim, self.dtype)
        partial = Partial.view(torch.empty(size, dtype=torch.uint8, device=self.device), tokens, n, dim, self.dtype)
        scores = (
            hidden @ weight.t()
        ).float()  # [tokens, rows]; in place from here on: it is the largest of all tensors
        partial.logits.copy_(scores[targets.positions, targets.columns])
        highest = scores.amax(1)
        total = scores.sub_(highest[:, None]).exp_().sum(1)
        torch.add(highest, total.log(), out=partial.normaliser)
        if training:
            scores.div_(total[:, None])[targets.positions, targets.columns] = 0.0
            softmax = scores.to(self.dtype)
            torch.mm(softmax, weight, out=partial.gradient)
            partial.targets.copy_(weight[targets.columns])
            if self.weight.requires_grad:
                normaliser, logits = partial.normaliser.clone(), partial.logits.clone()
                self._kept[k] = _Kept(hidden, softmax, normaliser, logits, targets)
        return partial

    @torch.no_grad()
    def weights(self, normaliser: torch.Tensor, valid: torch.Tensor, loss_gradient: float, k: int) -> None:
        """Add microbatch `k`'s gradient to `.grad`, now that the log of the whole sum of exponentials is known.

        `normaliser [tokens]`; `valid [tokens]` is 0 for ignored targets.
        """
        if k not in self._kept:  # a frozen head
            return
        hidden, gradient, own, logits, (positions, columns) = self._kept.pop(k)
        gradient.mul_(((own - normaliser).exp_() * valid * loss_gradient)[:, None])
        gradient[positions, columns] = ((logits - normaliser[positions]).expm1_() * loss_gradient).to(self.dtype)
        accumulate_weight(self.weight, hidden, gradient)

    def left(self) -> list[int]:
        """Microbatches whose weight gradients are owed."""
        return list(self._kept)


class Combined(NamedTuple):
    """What all shards say together of one microbatch."""

    loss: torch.Tensor  # the sum over valid targets
    normaliser: torch.Tensor  # [tokens], log of the sum of exponentials over the whole vocabulary
    gradient: torch.Tensor | None  # [tokens, dim] fp32, for the hidden states; None in evaluation


@torch.no_grad()
def combine(
    partials: Sequence[Partial], targets: Sequence[Targets], valid: torch.Tensor, loss_gradient: float
) -> Combined:
    """Rescale and add the parts of all shards, in their order. `valid [tokens]` is 0 for ignored targets."""
    normaliser = torch.logsumexp(torch.stack([partial.normaliser for partial in partials]), 0)
    losses = torch.zeros_like(normaliser)
    for partial, (positions, _) in zip(partials, targets):
        losses[positions] = normaliser[positions] - partial.logits
    loss = losses.sum()
    if not partials[0].gradient.numel():
        return Combined(loss, normaliser, None)
    gradient = torch.zeros(partials[0].gradient.shape, device=normaliser.device)
    for partial, (positions, _) in zip(partials, targets):
        share = (partial.normaliser - normaliser).exp_() * valid * loss_gradient
        gradient.addcmul_(share[:, None], partial.gradient)
        row = (partial.logits - normaliser[positions]).expm1_() * loss_gradient
        gradient.index_add_(0, positions, row[:, None] * partial.targets)
    return Combined(loss, normaliser, gradient)


def valid_tokens(targets: torch.Tensor, device: torch.device) -> torch.Tensor:
    """1.0 where the target counts, 0.0 where it is ignored: `[tokens]`, from `[batch, seq]` on the host."""
    return (targets.flatten() != IGNORED).to(device, torch.float32)
