"""What each stage of an experiment costs: seconds from arithmetic and memory traffic, or as measured; bytes; room per rank.

In: an experiment, which rank holds which stage, the layers of each stage, its hardware, perhaps a profile. Out: `Costs`.
Time is floating point operations over what the card sustains, plus bytes of everything that only moves memory over the
bandwidth it sustains. A matrix product costs the same forward, for I and for W; attention twice as much in I, nothing in W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ..specs import ChunkedCrossEntropy, Experiment
from ..specs.experiment import num_replicas, num_shards
from ..specs.recompute import policy
from . import hardware as machines
from .costs import Costs, with_shards
from .each_stage import each_stage
from .hardware import Hardware, Speed
from .host_costs import CARD_TO_HOST
from .kept import LayerCost
from .memory import State
from .profile import Profile
from .resident import capacity, resident, room
from .shard_cost import shard_cost
from .sizes import Block, ModelSize, PartSize

__all__ = ["Seconds", "gather", "link", "model_costs"]

UNKNOWN_LAYER = 1.0  # seconds of F, I and W of a layer of which nothing is known: times are then relative


class Seconds(NamedTuple):
    """Of one microbatch."""

    forward: float = 0.0
    input_grad: float = 0.0
    weight_grad: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:  # type: ignore[override]  # seconds add up, tuples would join
        return Seconds(*(a + b for a, b in zip(self, other)))


def model_costs(
    experiment: Experiment,
    placement: Sequence[int],
    layers: Sequence[range],
    profile: Mapping[str, Any] | None = None,
    hardware: Hardware | None = None,
    policies: Sequence[str] | None = None,
) -> Costs:
    """Costs of one microbatch per stage; stage s is on rank placement[s] and has the layers layers[s]. With a spread head
    its shards follow, one for each rank: their F contains the gradient for hidden states.

    `hardware` replaces the experiment's own. `profile` (measured seconds, see `profile.Profile`) replaces modelled times.
    `policies` is what each stage recomputes; None: what the experiment says.

    Raises:
        ConfigError: `hardware` is not understood, or the profile is of something else.
    """
    ranks = max(placement) + 1
    found = machines.for_ranks(hardware or machines.parse(experiment.hardware), ranks * num_replicas(experiment))
    on_gpu = found.devices[0].kind != "host"
    state = State(experiment, on_gpu)
    size = state.size_of(experiment)
    measured = None if profile is None else Profile.of(profile, experiment)
    speeds = [machines.speed(device, bf16=state.number_bytes == 2) for device in found.devices]
    names = policies if policies is not None else (policy(experiment.recompute) or "full",) * len(layers)
    seconds = [
        _stage_seconds(experiment, size, layers, stage, state, speeds[placement[stage]], measured, names[stage])
        for stage in range(len(layers))
    ]
    held = each_stage(experiment, size, layers, state, names)
    owns = [[stage for stage, owner in enumerate(placement) if owner == rank] for rank in range(ranks)]
    stored = [resident(experiment, size, layers, own, state) for own in owns]
    own_devices = zip(found.devices, stored)  # of one replica
    rooms = [capacity(room(experiment, device), one, on_gpu) for device, one in own_devices]
    message = experiment.microbatch_size * experiment.seq_len * size.dim * state.number_bytes
    latency, rate = link(found, measured)
    costs = Costs(
        forward=tuple(s.forward for s in seconds),
        input_grad=tuple(s.input_grad for s in seconds),
        weight_grad=tuple(s.weight_grad for s in seconds),
        kept=tuple(float(sum(cost.kept)) for cost in held),
        owed=tuple(float(sum(cost.owed)) for cost in held),
        working=tuple(float(sum(cost.working)) for cost in held),
        splitting=tuple(float(sum(cost.inputs)) for cost in held),
        capacity=tuple(map(float, rooms)),
        latency=latency if ranks > 1 else 0.0,
        transfer=message / rate if ranks > 1 else 0.0,
    )
    slowest = min(speeds, key=lambda speed: speed.flops)
    return _with_shards(experiment, size, costs, state, slowest, measured) if num_shards(experiment) else costs


def _with_shards(
    experiment: Experiment, size: ModelSize, costs: Costs, state: State, speed: Speed, measured: Profile | None
) -> Costs:
    shards = num_shards(experiment)
    whole = Seconds(*measured.head) if measured else _head_seconds(experiment, size, state, speed)
    held = shard_cost(experiment, size, shards, state)
    forward, weight_grad = (whole.forward + whole.input_grad) / shards, whole.weight_grad / shards
    return with_shards(costs, forward, weight_grad, float(sum(held.kept)), float(sum(held.working)))


def link(found: Hardware, measured: Profile | None = None) -> tuple[float, float]:
    """Seconds of latency and bytes per second between two ranks: as said, else as measured, else assumed."""
    on_host = bool(found.devices) and found.devices[0].kind == "host"
    latency, rate = (machines.HOST_LATENCY, machines.HOST_LINK) if on_host else (machines.LATENCY, machines.LINK)
    if measured is not None and measured.link is not None:
        latency, rate = measured.link
    return found.latency or latency, found.link or rate


def gather(found: Hardware, measured: Profile | None = None) -> float:
    """Bytes per second that a rank sends while all ranks take part in a collective: as said, else as over a link."""
    return found.gather or link(found, measured)[1]


def _stage_seconds(
    experiment: Experiment,
    size: ModelSize,
    layers: Sequence[range],
    stage: int,
    state: State,
    speed: Speed,
    measured: Profile | None,
    name: str,
) -> Seconds:
    first, last = stage == 0, stage == len(layers) - 1
    if measured is not None:
        parts = [Seconds(*measured.layers[index]) for index in layers[stage]]
        parts += [Seconds(*measured.embedding)] * first + [Seconds(*measured.head)] * (
            last and not num_shards(experiment)
        )
        return sum(parts, Seconds())
    tokens = experiment.microbatch_size * experiment.seq_len
    how = name, experiment.recompute.mlp_tiles, experiment.recompute.offload
    parts = [_layer_seconds(size.blocks[index], size.dim, tokens, state, speed, *how) for index in layers[stage]]
    if first:
        parts.append(_moved(W=10 * tokens * size.dim, speed=speed))  # adds rows: reads bf16 and fp32, writes fp32
    if last and not num_shards(experiment):
        parts.append(_head_seconds(experiment, size, state, speed))
    return sum(parts, Seconds())


def _layer_seconds(
    block: Block, dim: int, tokens: int, state: State, speed: Speed, name: str, tiles: int, offload: bool
) -> Seconds:
    """What F keeps was written once and read once. I reads it, and writes and reads gradients; and makes again what the
    policy of that `name` does not keep. Copies to the host and back run beside all that, so that the slower of both counts.
    """
    layer = block.whole
    if not layer.parameters:
        return Seconds(UNKNOWN_LAYER, UNKNOWN_LAYER * (1 + (name in ("keep_attention", "full"))), UNKNOWN_LAYER)
    products, attention = 2 * layer.matrices * tokens, layer.attention_flops * tokens
    kept = tokens * (state.number_bytes * layer.kept + 4 * layer.kept_fp32)
    gradients = tokens * state.number_bytes * layer.transient
    if state.float8:
        products *= 1.0 if speed.fp8 is None else speed.flops / speed.fp8
    forward = _computed(F=products + attention, speed=speed) + _moved(F=2 * kept, speed=speed)
    backward = _computed(I=products + 2 * attention, W=products, speed=speed)
    backward += _moved(I=kept + 2 * gradients, W=_accumulated(layer, state) * tiles, speed=speed)
    if state.float8:
        rounded = _rounded(layer, tokens, speed)
        forward += Seconds(forward=rounded.forward)
        backward += rounded._replace(forward=0.0)
    whole = forward + backward + _again(block, layer, tokens, kept, state, speed, name, tiles)
    if not offload:
        return whole
    copying = tokens * state.number_bytes * LayerCost.of(block, dim, name, tiles, offload).host / CARD_TO_HOST
    return whole._replace(forward=max(whole.forward, copying), input_grad=max(whole.input_grad, copying))


def _again(
    block: Block, layer: PartSize, tokens: int, kept: int, state: State, speed: Speed, name: str, tiles: int
) -> Seconds:
    """What I does of F once more: memory traffic alone; or all but the last product, with attention or without. An MLP in
    tiles runs once more under every policy.
    """
    if name in ("none", "norms_and_activation"):
        cheap = layer.cheap if name != "none" else 0
        products = 2 * (block.mlp.matrices - layer.closing) if tiles > 1 else 0
        moved = 2 * state.number_bytes * (cheap + (block.mlp.kept if tiles > 1 else 0))
        return _computed(I=tokens * products, speed=speed) + _moved(I=tokens * moved, speed=speed)
    attention = layer.attention_flops if name == "full" or not layer.attended else 0
    products = 2 * (layer.matrices - layer.closing)
    return _computed(I=tokens * (products + attention), speed=speed) + _moved(I=2 * kept, speed=speed)


def _rounded(layer: PartSize, tokens: int, speed: Speed) -> Seconds:
    """Passes over factors on their way to float8: their largest number, scaled, rounded, and copied where columns must lie
    together; half of what is owed to W are inputs. And the weight gradient, added in a pass of its own."""
    factors = tokens * layer.owed
    return _moved(
        F=4.5 * factors + 7 * layer.matrices,
        I=4.5 * factors + 9 * layer.matrices,
        W=9 * factors + 8 * layer.matrices,
        speed=speed,
    )


def _head_seconds(experiment: Experiment, size: ModelSize, state: State, speed: Speed) -> Seconds:
    """The product, and the loss over the vocabulary: logits in fp32 and their log-softmax, then its gradient.

    A chunked loss does all of it in B or I; it adds to the weight's gradient once for every chunk.
    """
    tokens = experiment.microbatch_size * experiment.seq_len
    products = size.head.flops * tokens
    logits = tokens * size.vocab_size
    if isinstance(experiment.loss, ChunkedCrossEntropy):
        chunks = -(-tokens // experiment.loss.chunk)
        written = 3 * state.number_bytes + (
            36 if state.number_bytes == 2 else 32
        )  # and fp32 copies, a few rows at a time
        moved = (written if experiment.loss.kernel == "torch" else 6 * state.number_bytes) * logits
        added = chunks * _accumulated(size.head, state)
        return _computed(I=3 * products, speed=speed) + _moved(I=moved + added, speed=speed)
    forward, backward = (2 * state.number_bytes + 12) * logits, (12 + state.number_bytes) * logits
    return _computed(F=products, I=products, W=products, speed=speed) + _moved(
        F=forward, I=backward, W=_accumulated(size.head, state), speed=speed
    )


def _accumulated(part: PartSize, state: State) -> int:
    """Bytes that W moves to add a weight gradient: where gradients have another format than activations, the product is
    written in bf16, read again, and added in a pass of its own; else the product adds it at no extra cost.
    """
    return 12 * part.matrices if state.number_bytes == 2 and state.bytes_of(part, True)[1] > 2 * part.parameters else 0


def _computed(F: float = 0.0, I: float = 0.0, W: float = 0.0, *, speed: Speed) -> Seconds:  # noqa: E741  the letters of actions
    rate = speed.products
    return Seconds(F / rate, I / rate, W / rate)


def _moved(F: float = 0.0, I: float = 0.0, W: float = 0.0, *, speed: Speed) -> Seconds:  # noqa: E741  the letters of actions
    rate = speed.copies
    return Seconds(F / rate, I / rate, W / rate)
