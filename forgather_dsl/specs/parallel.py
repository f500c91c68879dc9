"""Where the work runs: one process, or a pipeline of stages under a schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ..dsl import REQUIRED, Lazy
from .validators import at_least

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")


class Schedule(Lazy[T], abstract=True, runtime=("ranks", "microbatches")):
    """The order in which each rank runs the forward and backward passes of its stages.

    Of your own: `class Mine(Schedule["my_function"])`, a function of ranks and microbatches (and of the class's
    fields) that returns a forgather_dsl.plan.schedules.Schedule; with `__placement__` unless each rank has one stage.
    """

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """The rank that holds each stage: one stage on each."""
        return tuple(range(ranks))


class GPipe(Schedule["forgather_dsl.plan.schedules.gpipe"]):
    """All forwards, then all backwards: simple, and every microbatch's activations are live (https://arxiv.org/abs/1811.06965)."""


class OneFOneB(Schedule["forgather_dsl.plan.schedules.one_f_one_b"]):
    """One forward, one backward in turn: at most as many live microbatches as stages (https://arxiv.org/abs/1806.03377)."""


class Loop(Schedule[T], abstract=True):
    """Several stages on each rank, dealt out in turn: a smaller bubble, more messages."""

    chunks: int = attrs.field(default=2, validator=at_least(1, 64))  # stages of each rank

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """Stage s on rank s % ranks."""
        return tuple(range(ranks)) * self.chunks


class Interleaved(Loop["forgather_dsl.plan.schedules.interleaved"]):
    """1F1B over several stages per rank, its bubble divided by them (https://arxiv.org/abs/2104.04473)."""


class LoopedBFS(Loop["forgather_dsl.plan.schedules.looped_bfs"]):
    """GPipe over several stages per rank, its bubble divided by them (https://arxiv.org/abs/2211.05953)."""


class ZeroBubbleH1(Schedule["forgather_dsl.plan.schedules.zero_bubble_h1"]):
    """Split backward: weight gradients fill the bubble at the memory of 1F1B (https://arxiv.org/abs/2401.10241)."""


class ZeroBubbleH2(Schedule["forgather_dsl.plan.schedules.zero_bubble_h2"]):
    """Split backward: nearly no bubble, at twice the activations of 1F1B (https://arxiv.org/abs/2401.10241)."""


class Vee(Schedule[T], abstract=True):
    """Two stages on each rank, down the ranks and up again: the first and the last stage meet on rank 0."""

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """Stage s on rank s, those after the turn on rank 2 * ranks - 1 - s."""
        return (*range(ranks), *reversed(range(ranks)))


class ZeroBubbleV(Vee["forgather_dsl.plan.schedules.zero_bubble_v"]):
    """Split backward in a V: half of ZeroBubbleH1's bubble at the memory of 1F1B (https://arxiv.org/abs/2401.10241)."""


class VHalf(Vee["forgather_dsl.plan.schedules.v_half"]):
    """Split backward in a V at half the activations of 1F1B, with about half of its bubble (https://arxiv.org/abs/2405.15362)."""


class VMin(Vee["forgather_dsl.plan.schedules.v_min"]):
    """Split backward in a V at a third of the activations of 1F1B, with two thirds of its bubble (https://arxiv.org/abs/2405.15362)."""


class DualPipeV(Vee["forgather_dsl.plan.schedules.dualpipe_v"]):
    """Half of DualPipe: whole backwards but for the first and last microbatches (https://arxiv.org/abs/2412.19437)."""


class ScheduleFile(Schedule["forgather_dsl.plan.schedules.from_file"], runtime=()):
    """An order of your own, or torch.distributed.pipelining's: CSV, one row per rank, cells such as 2F0."""

    path: str = REQUIRED

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """As the file has it, whatever the number of ranks. Raises ValueError when it holds no schedule."""
        from ..plan.schedules import from_file

        return from_file(self.path).placement


class Searched(Schedule[T], abstract=True, runtime=("ranks", "microbatches", "costs")):
    """An order made for the costs of the experiment: modelled ones, or those that `run --profile` measured."""

    profile: str | None = None  # the file of measured times; None: modelled


class ZeroBubble(Searched["forgather_dsl.plan.schedules.zero_bubble"]):
    """Split backward, the order found by a search (https://arxiv.org/abs/2401.10241); with two chunks in a V."""

    chunks: int = attrs.field(default=1, validator=at_least(1, 64))  # stages on each rank, down the ranks and up again
    memory_cap: int | None = attrs.field(
        default=None, validator=at_least(1)
    )  # live microbatches; None: what memory holds

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """Stage s on rank s, those after a turn in the reverse order."""
        down = tuple(range(ranks))
        return tuple(rank for chunk in range(self.chunks) for rank in (down[::-1] if chunk % 2 else down))


class Auto(Searched[Any]):
    """The fastest that fits of all schedules: placement, split of the layers and order, chosen together. `plan` says why."""

    def __placement__(self, ranks: int) -> tuple[int, ...]:
        """Raises ValueError: it is chosen with the rest."""
        raise ValueError("Auto chooses the placement together with the layers and the order")


class Parallel(Lazy[Any], abstract=True):
    """How one step is spread over ranks."""


class Single(Parallel):
    """One process."""


class DDP(Parallel):
    """Every rank has the whole model and takes its share of the batch; gradients are added up while the backward goes on
    (https://arxiv.org/abs/2006.15704).
    """

    replicas: int = attrs.field(default=2, validator=at_least(1, 4096))  # ranks, which share the batch


class FSDP2(Parallel):
    """Weights, gradients and optimizer state cut by rows over `shards` ranks, which share the batch; each layer is gathered
    when it runs (https://arxiv.org/abs/2304.11277). With `replicas`, so many sets of shards (HSDP). Ranks: shards x replicas.
    """

    shards: int = attrs.field(default=2, validator=at_least(1, 4096))
    replicas: int = attrs.field(default=1, validator=at_least(1, 4096))
    reshard_after_forward: bool = True  # gather each layer again for its backward; False: keep it whole from F to B
    offload: bool = False  # shards, their gradients and the optimizer on the host


class Pipeline(Parallel):
    """The layers cut into stages that pass microbatches on; `replicas` of it share the batch. Ranks: stages x replicas.

    `stages` counts the ranks of one replica: the schedule settles how many stages of the model each of them has.
    """

    stages: int = attrs.field(default=2, validator=at_least(1, 128))
    schedule: Schedule = OneFOneB()
    cuts: tuple[int, ...] | None = None  # layers of each stage; None: balanced by cost
    engine: str = attrs.field(
        default="own", validator=attrs.validators.in_(("own", "torch"))
    )  # what runs training steps
    spread_head: bool = False  # the output head cut by rows of the vocabulary, a shard on every rank
    replicas: int = attrs.field(default=1, validator=at_least(1, 4096))  # copies of the model, which share the batch
    shard_replicas: bool = False  # replicas keep a slice of the optimizer's state each, not all of it
    ranks_per_gpu: int = attrs.field(default=1, validator=at_least(1))  # at most; above 1, messages go through the host

    post_validation: bool = False  # update before all ranks have agreed on clipping, and take it back if it was wrong

    def __check__(self) -> Any:
        if self.engine == "torch" and self.post_validation:
            yield "post_validation", "torch's runtime cannot run forwards again; leave it out, or write engine='own'"
        if self.spread_head and self.post_validation:
            yield "post_validation", "a head spread over the ranks is not run again; leave one of the two out"
        if self.engine == "torch" and self.stages == 1:
            yield "engine", "torch's runtime needs two ranks or more, this pipeline has one; leave it out"
        if self.engine == "torch" and self.ranks_per_gpu > 1:
            yield (
                "ranks_per_gpu",
                "torch's runtime cannot send between ranks that share a card; leave one of the two out",
            )
        if self.engine == "torch" and self.spread_head:
            yield "spread_head", "torch's runtime has no shards of a head; leave it out, or write engine='own'"
        places = placement(self)
        if self.cuts is not None and places is not None and len(self.cuts) != len(places):
            yield (
                "cuts",
                f"{len(self.cuts)} numbers for {described(self, places)}; give one number of layers for each stage",
            )
        if self.cuts is not None and any(n < 1 for n in self.cuts):
            yield "cuts", f"{self.cuts}: every stage needs a layer"


class AutoParallel(Parallel):
    """The fastest strategy that fits, by plan, on the experiment's `hardware`: chosen before anything is written or started.
    The run directory holds the class that it came to, and why. `microbatch_size` is chosen too where no class sets it.
    """


def placement(parallel: Pipeline) -> tuple[int, ...] | None:
    """The rank that holds each stage; None when the schedule's file does not say."""
    try:
        return parallel.schedule.__placement__(parallel.stages)
    except ValueError:  # told where the file is read for its actions
        return None


def described(parallel: Pipeline, places: tuple[int, ...]) -> str:
    """How many stages, and why, for a message: `8 stages (4 ranks x 2 under ZeroBubbleV)`."""
    ranks = max(places) + 1
    if len(places) == ranks:
        return f"{len(places)} stages"
    each = f"x {len(places) // ranks}" if len(places) % ranks == 0 else "altogether"
    return f"{len(places)} stages ({ranks} ranks {each} under {type(parallel.schedule).__name__})"
