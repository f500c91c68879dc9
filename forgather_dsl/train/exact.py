"""What a rank really holds at its peak, found by running it: the real stages, interpreter and optimizer on fake tensors.

In: an experiment, its layout, a rank. Out: bytes by kind at the moment of the peak. No GPU, no memory, no other rank:
messages are sent to nobody and received empty. An action that finds the rank as an earlier one of its kind did does the
same again, so fewer microbatches are run where they lead through the same states.
Not counted: what kernels allocate for themselves, fragmentation, the CUDA context.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..dsl import build, replace
from ..parallel.deferred import DeferredEmbedding, DeferredLinear
from ..parallel.interpreter import Pipeline
from ..parallel.messages import Transfer, Wire
from ..plan.layout import Layout, lay_out
from ..plan.memory import Held, State
from ..plan.occupancy import Occupancy
from ..plan.resident import message_bytes
from ..plan.sharded_cost import is_cut
from ..plan.sizes import model_size
from ..plan.stage_cost import StageCost
from ..specs import BF16Mixed, Experiment, OnHost
from ..specs.experiment import num_replicas
from .as_gpu import as_on_gpu
from .assembly import make_model, make_optimizer, make_stage
from .exact_update import listener
from .gradients import clip, sum_of_squares
from .live import CUDA_BLOCK, HOST, LiveBytes
from .optim import Engine
from .optim.elementwise import AdamWRule
from .optim.engine import CHUNK_BYTES
from .optim.muon import MuonRule

__all__ = ["KINDS", "ExactRank", "exact", "kind_of", "run_rank", "steps"]

aten = torch.ops.aten
KINDS = ("weights", "gradients", "optimizer", "activations", "buffers", "loss")


@dataclass(frozen=True)
class ExactRank:
    """What one rank holds at its peak, in bytes, by kind; what was run to find out, and how long that took."""

    rank: int
    kinds: dict[str, int]
    microbatches: int
    seconds: float
    host: int = 0  # the most bytes of activations on the host

    @property
    def total(self) -> int:
        """Everything on the device."""
        return sum(self.kinds.values())


class _Silent(Wire):
    """A wire with nobody at the other end: what is sent is gone, what is received is there, and empty."""

    def __init__(self, rank: int, size: int, live: LiveBytes) -> None:
        super().__init__(None)
        self.rank, self.size, self.live = rank, size, live
        self.names = ["nobody"] * size

    def send(self, tensor: Tensor, target: int, tag: int) -> Transfer:
        """Done at once."""
        return Transfer(cast(dist.Work, _Done(None)), tensor, tensor, "nobody")

    def receive(self, into: Tensor, source: int, tag: int) -> Transfer:
        """A buffer until somebody takes it, then an activation."""
        if self.live.kind_of(into) == "weights":  # a tied head's copy, refreshed in place
            return self.send(into, source, tag)
        self.live.hold(into, "buffers")
        taken = _Done(lambda: self.live.hold(into, "activations"))
        return Transfer(cast(dist.Work, taken), into, into, "nobody")

    def broadcast(self, number: int, source: int) -> int:
        """Ours."""
        return number

    def open(self, pairs: Any) -> None:
        """Nothing."""


class _Done:
    """A transfer that is over."""

    def __init__(self, then: Callable[[], None] | None) -> None:
        self.then = then

    def is_completed(self) -> bool:
        """Always."""
        return True

    def wait(self) -> None:
        """Nothing to wait for."""
        if self.then:
            self.then()


class _Unread(Pipeline):
    """A pipeline whose loss nobody reads: fake tensors have no values."""

    def _loss_sum(self, execution: Any) -> None:
        return None


def exact(
    experiment: Experiment,
    layout: Layout | None = None,
    *,
    on_gpu: bool = True,
    ranks: Sequence[int] | None = None,
    progress: Callable[[ExactRank], None] | None = None,
) -> list[ExactRank]:
    """Every rank (or those of `ranks`) in turn, in this process; `progress` is called after each.

    `on_gpu`: formats, kernels and block size of a GPU; else of a CPU, to the byte. Of FSDP2 rank 0 alone (`exact_sharded`).
    """
    if is_cut(experiment):
        from .exact_sharded import exact_sharded

        return [exact_sharded(experiment, on_gpu=on_gpu)]
    whole = layout or lay_out(experiment)
    shorter = [] if layout else list(_shorter(experiment, whole))
    found, size = [], model_size(experiment.model, experiment.seq_len)
    message = message_bytes(experiment, size, State(experiment, on_gpu))
    leaving = experiment.recompute.offload
    for rank in ranks if ranks is not None else range(whole.schedule.num_ranks):
        states = _states(whole, rank, message, leaving)
        same = (pair for pair in shorter if _states(pair[1], rank, message, leaving) == states)
        found.append(run_rank(*next(same, (experiment, whole)), rank, on_gpu=on_gpu, fake=True))
        if progress is not None:
            progress(found[-1])
    return found


def _shorter(experiment: Experiment, layout: Layout) -> Iterator[tuple[Experiment, Layout]]:
    """The experiment with fewer microbatches, and its layout where the stages stay the same. A rank that goes through the
    same states has the same peak, but for the 512 bytes of each microbatch's loss and what a row of tokens takes."""
    ranks, size = layout.schedule.num_ranks, experiment.microbatch_size
    for count in (2, 3, *range(4, 4 * ranks + 1, max(1, ranks // 2))):
        if count < layout.schedule.num_microbatches:
            fewer = replace(experiment, batch_size=count * size * num_replicas(experiment))
            candidate = lay_out(fewer)
            if candidate.layers == layout.layers:
                yield fewer, candidate


def _states(layout: Layout, rank: int, message: int, leaving: bool) -> set[tuple]:
    nothing = StageCost(*[Held()] * len(StageCost._fields))._replace(leaving=Held(activations=int(leaving)))
    return Occupancy(layout.schedule, rank, [nothing] * layout.schedule.num_stages, message).states


def run_rank(experiment: Experiment, layout: Layout, rank: int, *, on_gpu: bool, fake: bool) -> ExactRank:
    """One training step of one rank, on fake tensors or, to see that it comes out the same, on real ones of a CPU."""
    started = time.perf_counter()
    own = layout.schedule.stages_of(rank)
    models = [make_model(experiment) for _ in own]
    live = LiveBytes(CUDA_BLOCK if on_gpu else 1, partial(kind_of, experiment.model.vocab_size))
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else nullcontext():
        autocast = torch.bfloat16 if on_gpu and isinstance(experiment.precision, BF16Mixed) else None
        device = torch.device("cpu")
        stages = [make_stage(experiment, model, layout, i, device, autocast) for i, model in zip(own, models)]
        wire = _Silent(rank, layout.schedule.num_ranks, live)
        pipeline = _Unread(stages, layout.schedule, experiment.seed, wire=wire)
        for model, stage in zip(models, stages):
            _watch(model, live)
            if stage.keeping.offload is not None:
                stage.keeping.offload.empty = partial(_on_host, live)
        with as_on_gpu() if on_gpu else nullcontext():
            steps(experiment, pipeline, live, on_gpu, short=fake)
    kinds = {kind: live.at_peak[kind] for kind in KINDS}
    return ExactRank(rank, kinds, layout.schedule.num_microbatches, time.perf_counter() - started, live.most_on_host)


def _on_host(live: LiveBytes, tensor: Tensor) -> Tensor:
    with live.during(HOST):
        return torch.empty_like(tensor)


def _watch(model: Any, live: LiveBytes) -> None:
    """Count the weights; know the gradients that autograd makes. Those of deferred layers are known by how they are made,
    and hooks on their weights would be heeded, at a price."""
    deferred = {
        id(p) for m in model.modules() if isinstance(m, (DeferredLinear, DeferredEmbedding)) for p in m.parameters()
    }
    for parameter in model.parameters():
        live.hold(parameter, "weights")
        if id(parameter) not in deferred:
            parameter.register_post_accumulate_grad_hook(lambda p: live.hold(p.grad, "gradients"))


def steps(experiment: Experiment, pipeline: Pipeline, live: LiveBytes, on_gpu: bool, short: bool) -> None:
    """Make the optimizer's state, as a first step does, then take the peak of a step as all that follow are. `short` leaves
    out updates that take what others have taken."""
    share = experiment.batch_size // num_replicas(experiment)
    tokens, targets = (torch.zeros(share, experiment.seq_len, dtype=torch.long) for _ in range(2))
    documents = torch.zeros_like(tokens) if experiment.isolate_documents else None
    trained = dict(pipeline.named_parameters())
    for batch in (tokens, targets):
        live.hold(batch, "activations")
    with live:
        with live.during("optimizer"):
            optimizer = None if isinstance(experiment.update, OnHost) else make_optimizer(experiment, trained)
            if on_gpu and optimizer is not None:
                _as_on_gpu(optimizer)
            for parameter in trained.values():
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            if optimizer is not None:
                _first_update(optimizer, short)
        for parameter in trained.values():
            parameter.grad = None
        live.restart()
        pipeline.listener = listener(experiment, pipeline, optimizer, live)
        with live.during("activations"):
            pipeline.step(tokens, targets, documents, build(experiment.loss), 0, tokens.numel())
        _update(experiment, trained, optimizer, live, short)


def kind_of(words: int, live: LiveBytes, operator: Any, arguments: Any, made: Tensor) -> str | None:
    """What a new storage is, where the phase does not tell: copies of weights, their gradients, numbers per token and word."""
    if live.kind != "activations":
        return None
    name = operator.overloadpacket
    if name in (aten._to_copy, aten.zeros_like) and live.kind_of(arguments[0]) == "weights":
        return "weights" if name is aten._to_copy else "gradients"
    return "loss" if made.dim() > 1 and made.shape[-1] == words else None


def _as_on_gpu(optimizer: Any) -> None:
    """What is done for parameters on a GPU: larger chunks, AdamW by torch's fused kernel, Muon's iteration in bfloat16."""
    if not isinstance(optimizer, Engine):
        for group in optimizer.param_groups:
            if "foreach" in group:
                group["foreach"] = True
        return
    optimizer.chunk_bytes, optimizer.most_chunks = CHUNK_BYTES, 3
    for rule in {id(group["rule"]): group["rule"] for group in optimizer.param_groups}.values():
        if isinstance(rule, AdamWRule):
            rule.fused = True
        if isinstance(rule, MuonRule):
            rule.bf16 = True


def _update(experiment: Experiment, trained: dict[str, Any], optimizer: Any, live: LiveBytes, short: bool) -> None:
    """Norm, clipping and the optimizer's step, as train/loop.py does them; the norm is taken to exceed the limit."""
    with live.during("gradients"):
        squares = [sum_of_squares(p.grad) for p in trained.values() if p.grad is not None]
        if squares:
            torch.stack(squares)
        if experiment.clip_norm is not None:
            clip(list(trained.values()), 2 * experiment.clip_norm, experiment.clip_norm)
    with live.during("optimizer"):
        if short and isinstance(optimizer, Engine):
            for name in _one_of_each(optimizer):
                optimizer.step_one(name)
        elif optimizer is not None:
            optimizer.step()


def _first_update(optimizer: Any, short: bool) -> None:
    """Make every parameter's state."""
    if short and isinstance(optimizer, Engine):
        chunks, optimizer.most_chunks = optimizer.most_chunks, 1
        optimizer.step()
        optimizer.most_chunks = chunks
    else:
        optimizer.step()


def _one_of_each(optimizer: Engine) -> list[str]:
    """Parameters with gradients, one of every shape, format and rule: one after another, the others take what it takes."""
    kinds: dict[Any, str] = {}
    for group in optimizer.param_groups:
        for name, p in zip(group["param_names"], group["params"], strict=True):
            if p.grad is not None:
                kinds.setdefault((id(group["rule"]), p.shape, p.dtype), name)
    return list(kinds.values())
