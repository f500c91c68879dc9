"""Where the work runs: one process, or a pipeline of stages under a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ..dsl import Lazy
from .validators import at_least

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")


class Schedule(Lazy[T], abstract=True, runtime=("ranks", "microbatches")):
    """The order in which each rank runs the forward and backward passes of its stages."""

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """The rank that holds each stage: one stage on each."""
        return tuple(range(ranks))


class GPipe(Schedule["forgather_dsl.plan.schedules.gpipe"]):
    """All forwards, then all backwards: simple, and every microbatch's activations are live (https://arxiv.org/abs/1811.06965)."""


class OneFOneB(Schedule["forgather_dsl.plan.schedules.one_f_one_b"]):
    """One forward, one backward in turn: at most as many live microbatches as stages (https://arxiv.org/abs/1806.03377)."""


class ZeroBubbleH1(Schedule["forgather_dsl.plan.schedules.zero_bubble_h1"]):
    """Split backward: weight gradients fill the bubble at the memory of 1F1B (https://arxiv.org/abs/2401.10241)."""


class Searched(Schedule[T], abstract=True, runtime=("ranks", "microbatches", "costs")):
    """An order made for the costs of the experiment: modelled ones, or those that `run --profile` measured."""

    profile: str | None = None  # the file of measured times; None: modelled


class ZeroBubble(Searched["forgather_dsl.plan.schedules.zero_bubble"]):
    """Split backward, the order found by a search (https://arxiv.org/abs/2401.10241); with two chunks in a V."""

    chunks: int = attrs.field(default=1, validator=at_least(1))  # stages on each rank, down the ranks and up again
    memory_cap: int | None = attrs.field(
        default=None, validator=at_least(1)
    )  # live microbatches; None: what memory holds

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """Stage s on rank s, those after a turn in the reverse order."""
        down = tuple(range(ranks))
        return tuple(rank for chunk in range(self.chunks) for rank in (down[::-1] if chunk % 2 else down))


class Parallel(Lazy[Any], abstract=True):
    """How one step is spread over ranks."""


class Single(Parallel):
    """One process."""


class Pipeline(Parallel):
    """The layers cut into stages that pass microbatches on; `replicas` of it share the batch. Ranks: stages x replicas."""

    stages: int = attrs.field(default=2, validator=at_least(1))
    schedule: Schedule = OneFOneB()
    cuts: tuple[int, ...] | None = None  # layers of each stage; None: balanced by cost
    engine: str = attrs.field(
        default="own", validator=attrs.validators.in_(("own", "torch"))
    )  # what runs training steps
    spread_head: bool = False  # the output head cut by rows of the vocabulary, a shard on every rank
    replicas: int = attrs.field(default=1, validator=at_least(1))  # copies of the model, which share the batch
    ranks_per_gpu: int = attrs.field(default=1, validator=at_least(1))  # at most; above 1, messages go through the host

    def __check__(self) -> Any:
        if self.engine == "torch" and self.stages == 1:
            yield "engine", "torch's runtime needs two ranks or more, this pipeline has one; leave it out"
        if self.engine == "torch" and self.spread_head:
            yield "spread_head", "torch's runtime has no shards of a head; leave it out, or write engine='own'"
        if self.cuts is not None and len(self.cuts) != self.stages:
            yield "cuts", f"{len(self.cuts)} numbers for {self.stages} stages; give one number of layers for each stage"
        if self.cuts is not None and any(n < 1 for n in self.cuts):
            yield "cuts", f"{self.cuts}: every stage needs a layer"
