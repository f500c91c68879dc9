"""What a rank holds all the time: weights, gradients, optimizer state, message buffers, and what a process takes.

In: an experiment, where its stages are, and a rank. Out: bytes, and what is left of a card for microbatches (`capacity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..specs import DDP, FSDP2, Experiment, InBackward, Pipeline
from ..specs.experiment import num_shards
from .hardware import GIB, Device
from .memory import State, passes
from .occupancy import lookahead
from .sharded_cost import is_cut, own_rows
from .sizes import ModelSize, PartSize

__all__ = ["Resident", "capacity", "overhead", "resident", "room"]

CONTEXT = int(0.6 * GIB)  # CUDA context, kernels, communication buffers of one rank on a GPU; 0.67 on an H200
FRAGMENTATION = 0.04  # of what the allocator hands out on a GPU; 1 to 3 % was seen, and once 9 (benchmarks/LOG.md)
PROCESS = int(0.35 * GIB)  # Python and torch, one rank on a CPU


FLYING, BUCKET = 3, 25 * 2**20  # buckets of gradients, and the bytes of one (parallel/reducing.py)


class Resident(NamedTuple):
    """Bytes that one rank holds; `copies` of weights during a step; `update` is what the optimizer makes for itself at its
    end, or what replicas send, when no microbatch is alive and no copy; `host` is in the host's memory."""

    weights: int
    copies: int
    gradients: int
    optimizer: int
    buffers: int
    update: int
    host: int = 0


def resident(
    experiment: Experiment, size: ModelSize, ranges: Sequence[range], own: Sequence[int], state: State
) -> Resident:
    """Of the rank that holds the stages `own`, of stages with these ranges of layers."""
    parts: list[tuple[PartSize, bool]] = []  # and whether it is in a layer, where Muon takes the matrices
    parts += [(size.layers[index], True) for stage in own for index in ranges[stage]]
    last = len(ranges) - 1 in own
    parts += [(size.embedding, False)] * (0 in own) + [(size.final_norm, False)] * last
    shards = num_shards(experiment)
    if shards:
        parts.append((size.head_shard(shards), False))
    elif last and not (size.tied and 0 in own):
        parts.append((size.head, False))
    weights, gradients, optimizer, host = _stored(experiment, parts, state)
    parallel = experiment.parallel
    if is_cut(experiment) and isinstance(parallel, FSDP2):
        parts = [(own_rows(part, parallel.shards), in_layer) for part, in_layer in parts]
    if last and size.tied and 0 not in own:  # a copy: the embedding's rank has its optimizer state
        optimizer -= state.bytes_of(size.head, False)[2]
    if isinstance(experiment.parallel, Pipeline) and experiment.parallel.post_validation:
        # the copy that an update could be taken back with (train/post_validation.py), of weights and what goes with them;
        # it goes before the first backward, when nearly as many activations are alive as there will be
        optimizer += optimizer + weights
    copies = sum(state.casts(part) for part, _ in parts)
    if last and size.tied and 0 in own:  # the head's gradient is summed apart, and its weight cast
        copies += state.casts(size.head)
    copies = state.casts(size.head) if is_cut(experiment) else copies
    beside = [other for stage in own for other in (stage - 1, stage + 1)]
    neighbours = sum(0 <= stage < len(ranges) and stage not in own for stage in beside)
    if shards:  # hidden states from the last stage, which has a message from every shard
        neighbours += shards - 1 if last else 1
    message = message_bytes(experiment, size, state)
    updated = parts[:-1] if last and size.tied and 0 not in own else parts
    host += sum(state.on_host_of(*part) for part in updated)
    if passes(experiment, state):
        gradients = state.tied_gradient_bytes * size.embedding.parameters if size.tied and (last or 0 in own) else 0
    if isinstance(experiment.update, InBackward):  # all but a tied weight is updated by then
        updated = [(size.embedding, False)] if size.tied and 0 in own else []
    buffers = lookahead(message) * neighbours * message
    flying = _flying(experiment, parts, gradients, state)
    update = max(state.update(updated) if updated else 0, flying)
    return Resident(weights, copies, gradients, optimizer, buffers, update, host)


def _stored(experiment: Experiment, parts: Sequence[tuple[PartSize, bool]], state: State) -> tuple[int, int, int, int]:
    """Weights, gradients and optimizer state on the device, and all of what is on the host: this rank's rows of what is cut."""
    parallel = experiment.parallel
    if isinstance(parallel, FSDP2) and is_cut(experiment):
        own = [(own_rows(part, parallel.shards), in_layer) for part, in_layer in parts]
        kept = [(PartSize(vectors=part.vectors), in_layer) for part, in_layer in own] if parallel.offload else own
        weights, gradients, optimizer = (sum(kind) for kind in zip(*(state.bytes_of(*part) for part in kept)))
        host = sum(sum(state.bytes_of(*part)) for part in own) - weights - gradients - optimizer
        return weights, gradients, optimizer, host
    weights, gradients, optimizer = (sum(kind) for kind in zip(*(state.bytes_of(*part) for part in parts)))
    if isinstance(parallel, Pipeline) and parallel.shard_replicas:
        shared = [(own_rows(part, parallel.replicas), in_layer) for part, in_layer in parts]
        optimizer = sum(state.bytes_of(*part)[2] for part in shared)
    return weights, gradients, optimizer, 0


def _flying(experiment: Experiment, parts: Sequence[tuple[PartSize, bool]], gradients: int, state: State) -> int:
    """Copies of gradients on their way between replicas (parallel/reducing.py); the most when activations are gone."""
    parallel = experiment.parallel
    if (
        not isinstance(parallel, (DDP, Pipeline))
        or parallel.replicas == 1
        or getattr(parallel, "shard_replicas", False)
    ):
        return 0
    largest = max((part.largest for part, in_layer in parts if in_layer), default=0)
    return min(gradients, FLYING * max(BUCKET, state.gradient_bytes * largest))


def message_bytes(experiment: Experiment, size: ModelSize, state: State) -> int:
    """Of one activation or gradient between stages, `[microbatch_size, seq_len, dim]`."""
    return experiment.microbatch_size * experiment.seq_len * size.dim * state.number_bytes


def overhead(used: int, on_gpu: bool) -> int:
    """Bytes that a rank takes beside the `used` ones it asks for."""
    return CONTEXT + int(FRAGMENTATION * used) if on_gpu else PROCESS


def room(experiment: Experiment, device: Device) -> int:
    """Bytes of a device that the planner may fill; on a host nothing is left free."""
    leave = 0.0 if device.kind == "host" else experiment.recompute.leave_gib
    return device.memory_bytes - int(leave * GIB)


def capacity(memory_bytes: int, held: Resident, on_gpu: bool) -> int:
    """Bytes of a card that are left for microbatches; negative where there is too little for the weights alone."""
    usable = int((memory_bytes - CONTEXT) / (1 + FRAGMENTATION)) if on_gpu else memory_bytes - PROCESS
    usable -= 0 if on_gpu else held.host
    return usable - held.weights - held.copies - held.gradients - held.optimizer - held.buffers
