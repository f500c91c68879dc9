"""What does not go with parameters, or optimizer states, that are cut by rows among ranks: each rank has a part of a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from .optimizers import SGD, AdamW, Lion, Muon
from .parallel import FSDP2, Pipeline
from .training import BF16, FP8
from .update import AfterBackward

if TYPE_CHECKING:
    from .experiment import Experiment

__all__ = ["by_rows", "not_shardable"]

Problem = tuple[str, str]
"""A field, and what is wrong with it."""


def by_rows(experiment: Experiment) -> bool:
    """Whether the optimizer is known to treat every number by itself, so that rows learn apart what they learn together."""
    return type(experiment.optimizer).__target__ in [kind.__target__ for kind in (AdamW, Lion, SGD)]


def not_shardable(experiment: Experiment) -> Iterator[Problem]:
    """Why this experiment cannot be run with its parallel, exactly."""
    parallel = experiment.parallel
    if isinstance(parallel, FSDP2) and parallel.shards * parallel.replicas > 1:
        yield from _of_rows(experiment, "FSDP2", "DDP()")
        yield from _of_layers(experiment)
    if isinstance(parallel, Pipeline) and parallel.shard_replicas:
        yield from _of_rows(experiment, "shard_replicas=True", "shard_replicas=False")
        if parallel.replicas == 1:
            yield (
                "parallel.shard_replicas",
                "there is one replica, so nothing to share; leave it out, or write replicas=2",
            )
        if parallel.post_validation:
            yield (
                "parallel.post_validation",
                "weights come from all replicas after an update, which cannot be taken back then; leave one of "
                "post_validation and shard_replicas out",
            )


def _of_rows(experiment: Experiment, what: str, instead: str) -> Iterator[Problem]:
    name = type(experiment.optimizer).__name__
    if type(experiment.optimizer).__target__ == Muon.__target__:
        yield (
            "optimizer",
            f"Muon makes a whole matrix orthogonal, and under {what} each rank has some of its rows; write "
            f"optimizer=AdamW(), or parallel with {instead}",
        )
    elif not by_rows(experiment):
        yield (
            "optimizer",
            f"{name} is not known to treat every number by itself, so rows of a matrix ({what}) would not learn what the "
            f"whole learns; write optimizer=AdamW(), Lion() or SGD(), or parallel with {instead}",
        )
    update = type(experiment.update).__name__
    if not isinstance(experiment.update, AfterBackward):
        host = " (or FSDP2(offload=True), which keeps them on the host too)" if update == "OnHost" else ""
        yield (
            "update",
            f"{update} does not go with {what}; write update = AfterBackward(){host}, or parallel with {instead}",
        )
    if experiment.update.clip_rms is not None:
        yield (
            "update.clip_rms",
            f"it is a mean over a whole tensor, of which a rank has some rows under {what}; leave it out, or write "
            f"parallel with {instead}",
        )


def _of_layers(experiment: Experiment) -> Iterator[Problem]:
    """Of what comes and goes with each layer."""
    precision = experiment.precision
    if isinstance(precision, FP8):
        yield (
            "precision",
            "FP8 keeps the scaled weights of all layers from microbatch to microbatch, and FSDP2 lets them go after each "
            "layer; write precision=BF16(), or a Pipeline",
        )
    elif isinstance(precision, BF16) and precision.gradients == "fp32":
        yield (
            "precision.gradients",
            "torch's fully_shard adds up shards of gradients in the format of the weights; write BF16(), or parallel=DDP()",
        )
    if experiment.compile:
        yield "compile", "layers whose weights come and go are not compiled; write compile = False, or parallel=DDP()"
    if experiment.recompute.offload:
        yield (
            "recompute.offload",
            "activations and gathered weights would want the link at the same time; leave it out (FullRecompute() keeps the "
            "least), or write a Pipeline",
        )
