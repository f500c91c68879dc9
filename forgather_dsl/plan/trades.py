"""Changes that advice tries beside those of a pipeline: memory for time, for the host's memory, at last for exactness.

Each takes an experiment and yields candidates, the smallest change first; what comes first in `EXACT` costs least. Those in
`EXACT` leave every number of the results alone or within rounding, those in `INEXACT` do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from ..dsl import Lazy, replace
from ..specs import (
    BF16,
    Adafactor,
    AdamW,
    AfterBackward,
    AutoRecompute,
    ChunkedCrossEntropy,
    CrossEntropy,
    Experiment,
    FullRecompute,
    InBackward,
    KeepAttention,
    NoRecompute,
    NormsAndActivation,
    OnHost,
    Pipeline,
)
from ..specs.experiment import num_microbatches, num_shards
from .estimate import Site

__all__ = ["EXACT", "INEXACT", "Kind"]

Kind = Callable[[Experiment, Site], Iterator[Experiment]]
"""Candidates with one thing changed."""

POLICIES: tuple[type[Lazy[Any]], ...] = (NoRecompute, NormsAndActivation, KeepAttention, FullRecompute)
TILES = (4, 8)


def chunked_loss(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Logits of a part of the tokens at a time; a spread head has its own loss."""
    if type(experiment.loss).__target__ == CrossEntropy.__target__ and not num_shards(experiment):
        yield replace(experiment, loss=ChunkedCrossEntropy())


def recompute(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """More of the layers, step by step; on a pipeline as much as each stage needs."""
    own = experiment.recompute
    if isinstance(own, FullRecompute):
        return
    kept = {name: getattr(own, name) for name in ("offload", "mlp_tiles") if name in type(own).__fields__}
    at = next((number for number, policy in enumerate(POLICIES) if isinstance(own, policy)), 0)
    harder = list(POLICIES[at + 1 :])
    if isinstance(experiment.parallel, Pipeline):
        harder = [*[AutoRecompute] * (not isinstance(own, AutoRecompute)), FullRecompute]
    for policy in harder:
        yield replace(experiment, recompute=policy(**kept))


def tiles(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """The MLP over parts of the sequence: what a layer needs while it runs again is less."""
    own: Any = experiment.recompute
    for count in TILES if "mlp_tiles" in type(own).__fields__ else ():
        if count > own.mlp_tiles and experiment.seq_len % count == 0:
            yield replace(experiment, recompute=replace(own, mlp_tiles=count))


def offload(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """What layers keep for the backward pass goes to the host."""
    own: Any = experiment.recompute
    if site.on_gpu and "offload" in type(own).__fields__ and not own.offload:
        yield replace(experiment, recompute=replace(own, offload=True))


def on_host(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Optimizer state and masters, then gradients too, in the host's memory."""
    if not site.on_gpu:
        return
    if isinstance(experiment.update, AfterBackward):
        yield replace(experiment, update=OnHost())
    if not (isinstance(experiment.update, OnHost) and experiment.update.gradients == "host"):
        yield replace(experiment, update=OnHost(gradients="host"))


def microbatch(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Smaller ones, so more of them."""
    size = experiment.microbatch_size
    yield from (replace(experiment, microbatch_size=n) for n in range(size - 1, 0, -1) if size % n == 0)


def precision(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Weights, gradients and activations of two bytes; the masters stay exact."""
    if site.on_gpu and not isinstance(experiment.precision, BF16):
        yield replace(experiment, precision=BF16())


def states(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """The optimizer's own with a byte a number, else AdamW's."""
    own = experiment.optimizer
    if "states" in type(own).__fields__:
        if own.states != "8bit":  # type: ignore[attr-defined]
            yield replace(experiment, optimizer=replace(own, states="8bit"))
    elif type(own).__target__ != Adafactor.__target__:
        yield replace(experiment, optimizer=AdamW(states="8bit"))


def rounding(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Weights rounded by chance, with nothing beside them."""
    own = experiment.precision
    if site.on_gpu and isinstance(own, BF16) and own.rounding in ("exact", "kahan"):
        yield replace(experiment, precision=replace(own, rounding="stochastic"))


def factored(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Rows and columns of statistics in place of moments."""
    if type(experiment.optimizer).__target__ == Adafactor.__target__:
        return
    lr = min(experiment.optimizer.lr, Adafactor().lr)
    changed = replace(experiment, optimizer=Adafactor(lr=lr))
    yield changed
    yield from rounding(changed, site)


def in_backward(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Gradients go as soon as they are applied, which pays where a step is one microbatch: nothing is clipped by a global norm."""
    if isinstance(experiment.update, InBackward) or not site.on_gpu or isinstance(experiment.parallel, Pipeline):
        return
    one = replace(experiment, update=InBackward(), clip_norm=None)
    if num_microbatches(experiment) > 1:
        one = replace(one, batch_size=experiment.microbatch_size)
    yield one
    for changed in factored(one, site):
        yield from rounding(changed, site)


def seq_len(experiment: Experiment, site: Site) -> Iterator[Experiment]:
    """Half of the length, and half of that."""
    length = experiment.seq_len
    while length % 2 == 0 and length > 128:
        length //= 2
        yield replace(experiment, seq_len=length)


EXACT: tuple[Kind, ...] = (chunked_loss, recompute, tiles, offload)
INEXACT: tuple[Kind, ...] = (microbatch, precision, states, on_host, rounding, factored, in_backward, seq_len)
