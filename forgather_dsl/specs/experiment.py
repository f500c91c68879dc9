"""Experiment: everything a training run is. Subclass it and write only what changes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import attrs

from ..dsl import Lazy, derived, replace
from .data import ChatSource, Source, Stdlib, Tokenizer, TrainedBPE
from .eval_sets import refused_sets
from .guard import Guard
from .logging import Checkpoints, Console, Logger, Sampling, Watchdog
from .model import Llama, Model
from .optimizers import AdamW, Muon, Optimizer
from .parallel import DDP, FSDP2, Parallel, Pipeline, Single, described, placement
from .recompute import FullRecompute, NoRecompute, Recompute, untileable
from .sharding import by_rows, not_shardable
from .training import (
    BF16,
    FP8,
    BF16Mixed,
    CrossEntropy,
    Loss,
    LRSchedule,
    Precision,
    WarmupCosine,
)
from .update import AfterBackward, Update
from .validators import at_least, positive

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings


MOST_MICROBATCHES = 16_384
OWN_OPTIMIZERS = "forgather_dsl.train.optim."


def _whole_batch(self: Experiment) -> int:
    return max(1, self.batch_size // num_replicas(self))


def _held_out(self: Experiment) -> Source | None:
    """The held-out documents of the training data."""
    return replace(self.data, split="held_out") if self.data.held_out and self.data.split == "train" else None


def _small_bpe(self: Experiment) -> Tokenizer:
    """Trained on the training text; one object for everything that needs it."""
    return TrainedBPE(source=self.data)


def _llama(self: Experiment) -> Model:
    return Llama(vocab_size=self.tokenizer.vocab_size)


def _packed(self: Experiment) -> bool:
    """Conversations that share a sequence have nothing to do with one another."""
    return isinstance(self.data, ChatSource)


class Experiment(Lazy["forgather_dsl.train.trainer.Trainer"], abstract=True):
    """A training run as a value. `build` makes a Trainer of it; `python -m forgather_dsl run file.py:Class` trains it."""

    __root__ = True

    seq_len: int = attrs.field(default=256, validator=at_least(1, 2**30))  # tokens
    batch_size: int = attrs.field(
        default=8, validator=at_least(1, 2**24)
    )  # sequences per optimizer step, over everything
    steps: int | None = attrs.field(default=None, validator=at_least(1))  # the first of steps,
    tokens: int | None = attrs.field(default=None, validator=at_least(1))  # trained tokens,
    epochs: float | None = attrs.field(default=None, validator=positive)  # times through the data
    seconds: float | None = attrs.field(default=None, validator=positive)  # and seconds to be reached ends the run
    seed: int = attrs.field(default=0, validator=at_least(0))
    init_from: str | None = None  # a run, a checkpoint or a Hugging Face folder whose weights the first start takes
    data: Source = Stdlib()
    eval_sets: Mapping[str, Source] = MappingProxyType({})  # more held-out text, by name, evaluated beside `eval_data`
    isolate_documents: bool = derived(_packed)  # attention does not cross document boundaries
    optimizer: Optimizer = AdamW()
    lr_schedule: LRSchedule = WarmupCosine()
    clip_norm: float | None = attrs.field(default=1.0, validator=positive)
    precision: Precision = BF16Mixed()
    deterministic: bool = True  # the same bits from every run on a GPU too; attention's backward is slower for it
    hardware: str = "auto"  # "4x24GB", "24GB+12GB", or what is here
    parallel: Parallel = Single()
    update: Update = AfterBackward()  # when and where the optimizer steps
    recompute: Recompute = NoRecompute()
    loss: Loss = CrossEntropy()
    compile: bool = False  # what lies between a layer's products by torch.compile; the first step then takes minutes
    log_every: int = attrs.field(default=10, validator=at_least(1))  # steps, as the next three
    eval_every: int | None = attrs.field(default=None, validator=at_least(1))  # None: at the end
    save_every: int | None = attrs.field(default=None, validator=at_least(1))  # None: at the end
    sample_every: int | None = attrs.field(default=None, validator=at_least(1))  # None: before and after
    sampling: Sampling | None = Sampling()
    checkpoints: Checkpoints = Checkpoints()
    guard: Guard = Guard()
    watchdog: Watchdog | None = Watchdog()
    loggers: tuple[Logger, ...] = (Console(),)

    microbatch_size: int = derived(_whole_batch)  # sequences per forward pass; also on one process, so that sums agree
    eval_data: Source | None = derived(_held_out)  # None to do without
    tokenizer: Tokenizer = derived(_small_bpe)
    model: Model = derived(_llama)  # its sizes are left to subclasses: model = patch(Llama, dim=...)

    def __build__(self, build: Any, **runtime: Any) -> Any:
        from ..train.trainer import Trainer

        return Trainer(self, **runtime)

    def __check__(self) -> Any:
        yield from self.__check_batch__()
        yield from refused_sets(self.eval_sets, self.data)
        if all(stop is None for stop in (self.steps, self.tokens, self.epochs, self.seconds)):
            yield "steps", "nothing ends this run; write steps = 1000, tokens = ..., epochs = ... or seconds = ..."
        if self.model.vocab_size < self.tokenizer.vocab_size:
            yield (
                "model.vocab_size",
                f"{self.model.vocab_size} is smaller than the tokenizer's {self.tokenizer.vocab_size}; "
                f"write vocab_size={self.tokenizer.vocab_size}, or patch(Llama, ...) to keep what the base passes down",
            )
        yield from self.__check_products__()
        if self.guard.spike is not None and self.guard.spike.rollback and self.save_every is None:
            yield "guard.spike.rollback", "there is no checkpoint to go back to; write save_every = 100 or the like"
        rounding = self.precision.rounding if isinstance(self.precision, BF16) else "exact"
        if rounding != "exact" and not str(type(self.optimizer).__target__).startswith(OWN_OPTIMIZERS):
            yield (
                "precision.rounding",
                f"{rounding} is done by the optimizers of this package, and {type(self.optimizer).__name__} is not one of "
                "them; leave it out: exact masters go with every optimizer",
            )
        other = untileable(self.model) if self.recompute.mlp_tiles > 1 else None
        if other is not None:
            yield (
                "recompute.mlp_tiles",
                f"{other} is not known to treat each token by itself, as tiles need; leave it out, or if it does say so with "
                "__token_wise__ = True in the class of its spec",
            )
        yield from self.__check_stages__()
        yield from not_shardable(self)
        yield from self.update.__refused__(self)

    def __check_products__(self) -> Any:
        """Of float8 and compiled layers, what they do not go with."""
        rows, tiles = self.seq_len * self.microbatch_size, self.recompute.mlp_tiles
        if isinstance(self.precision, FP8) and rows % 16:
            yield (
                "precision",
                f"FP8() adds over the tokens of a microbatch, 16 at a time, and it has {rows}; write a seq_len that is a "
                "multiple of 16, or precision=BF16()",
            )
        if isinstance(self.precision, FP8) and tiles > 1:
            yield (
                "recompute.mlp_tiles",
                "FP8() scales a tensor as a whole, so that tiles would be rounded otherwise; write mlp_tiles=1, or "
                "precision=BF16()",
            )
        if self.compile and (tiles > 1 or not isinstance(self.recompute, (NoRecompute, FullRecompute))):
            what = f"mlp_tiles={tiles}" if tiles > 1 else f"{type(self.recompute).__name__}()"
            yield (
                "compile",
                f"{what} takes a layer apart, which is then no longer compiled as one; write compile = False, or "
                "recompute = FullRecompute()",
            )

    def __check_batch__(self) -> Any:
        replicas = num_replicas(self)
        share, rest = divmod(self.batch_size, replicas)
        if self.microbatch_size < 1:
            yield "microbatch_size", f"{self.microbatch_size} is no number of sequences; write 1 or more"
        elif rest:
            fewer = f"{share * replicas} or " if share else ""
            yield (
                "batch_size",
                f"{self.batch_size} sequences do not divide among {replicas} {_sharers(self)}; write batch_size = {fewer}"
                f"{(share + 1) * replicas}, or parallel.{_sharers(self)} = one of {divisors(self.batch_size)}",
            )
        elif share % self.microbatch_size:
            each = f", {share} for each of {replicas} replicas," if replicas > 1 else ""
            yield (
                "microbatch_size",
                f"batch_size {self.batch_size}{each} is not a multiple of microbatch_size {self.microbatch_size}; "
                f"write one of {divisors(share)}",
            )
        elif share // self.microbatch_size > MOST_MICROBATCHES:
            yield (
                "microbatch_size",
                f"{share // self.microbatch_size} microbatches in a step are more than the {MOST_MICROBATCHES} that are "
                "planned one by one; write a larger microbatch_size or a smaller batch_size",
            )

    def __check_stages__(self) -> Any:
        parallel, layers = self.parallel, self.model.num_layers
        if not isinstance(parallel, Pipeline):
            return
        places = placement(parallel)
        if places is not None and len(places) > layers:
            yield (
                "parallel.stages",
                f"{described(parallel, places)} for {layers} layers; every stage needs one: "
                f"write num_layers={len(places)} or more, fewer stages, or a schedule with fewer on each rank",
            )
        if parallel.post_validation and self.seconds is not None:
            yield (
                "parallel.post_validation",
                "a run limited by seconds agrees on the time after every step, so nothing is gained; write steps or tokens",
            )
        if parallel.cuts is not None and sum(parallel.cuts) != layers:
            yield "parallel.cuts", f"{parallel.cuts} adds up to {sum(parallel.cuts)}, the model has {layers} layers"
        if parallel.spread_head:
            yield from (("parallel.spread_head", reason) for reason in self.__not_spreadable__(parallel.stages))

    def __not_spreadable__(self, ranks: int) -> Any:
        """Why the head cannot be cut into shards, or the result would not be that of one process."""
        if ranks == 1:
            yield "there is one rank, so nothing to spread the head over; leave it out, or write stages=2 or more"
        if getattr(self.model, "tie_embeddings", False):
            yield "a head tied to the embedding cannot be spread; leave it out, or write tie_embeddings=False"
        if self.model.vocab_size < ranks:
            yield f"{self.model.vocab_size} rows of the head do not go round {ranks} ranks; leave it out"
        if type(self.loss).__target__ != CrossEntropy.__target__:
            name = type(self.loss).__name__
            yield f"the shards compute cross entropy themselves, not {name}; leave it out, or write loss=CrossEntropy()"
        if not by_rows(self) and type(self.optimizer).__target__ != Muon.__target__:
            name = type(self.optimizer).__name__
            yield (
                f"{name} is not known to treat every number of the head by itself, so shards would not learn what the "
                "whole learns; leave it out, or write optimizer=AdamW(), Lion(), Muon() or SGD()"
            )


def _sharers(experiment: Experiment) -> str:
    return "shards" if isinstance(experiment.parallel, FSDP2) else "replicas"


def divisors(number: int) -> str:
    """The numbers that divide `number`, for a message: the smallest if there are many."""
    found = [n for n in range(1, min(number, 4096) + 1) if number % n == 0]
    return ", ".join(map(str, found[:24])) + (", ..." if len(found) > 24 or number > 4096 else "")


def pipeline_ranks(experiment: Experiment) -> int:
    """How many ranks hold one copy of the model."""
    return experiment.parallel.stages if isinstance(experiment.parallel, Pipeline) else 1


def num_shards(experiment: Experiment) -> int:
    """Shards of the output head, one for each rank of a pipeline; 0 when the last stage has it whole."""
    parallel = experiment.parallel
    return parallel.stages if isinstance(parallel, Pipeline) and parallel.spread_head else 0


def num_replicas(experiment: Experiment) -> int:
    """Among how many ranks, or pipelines of ranks, the batch is divided."""
    parallel = experiment.parallel
    if isinstance(parallel, FSDP2):
        return parallel.shards * parallel.replicas
    return parallel.replicas if isinstance(parallel, (DDP, Pipeline)) else 1


def world_size(experiment: Experiment) -> int:
    """How many ranks an experiment runs on."""
    return pipeline_ranks(experiment) * num_replicas(experiment)


def num_microbatches(experiment: Experiment) -> int:
    """Microbatches per step of each replica."""
    return experiment.batch_size // num_replicas(experiment) // experiment.microbatch_size
