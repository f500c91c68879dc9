"""The parts a rank trains with, built from the experiment: its stages, its shard of a spread head, its optimizer.

In: an experiment and its layout. Out: modules whose weights hold no values yet, and an optimizer over their parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..dsl import build
from ..dsl.imports import import_target
from ..errors import UserError
from ..models.parts import drop_part, part_of
from ..parallel.float8 import to_float8
from ..parallel.losses import takes_head
from ..parallel.shard import HeadShard
from ..parallel.stage import Stage
from ..plan.layout import Layout
from ..specs import FP8, Experiment, Muon, OnHost
from .chunked_loss import ChunkedCrossEntropy, check_head
from .optim import Engine, Foreign, Keeping, parameter_groups, role
from .update.host_optimizer import HostOptimizer

__all__ = ["make_loss", "make_model", "make_optimizer", "make_shard", "make_stage"]


def make_model(experiment: Experiment) -> Any:
    """The whole model on the meta device, in the format that the precision keeps weights in."""
    with torch.device("meta"):
        model: Any = build(experiment.model)
    return model.to(build(experiment.precision).parameters)


def make_stage(
    experiment: Experiment,
    model: Any,
    layout: Layout,
    index: int,
    device: torch.device,
    autocast: torch.dtype | None,
    hollow: bool = False,
) -> Stage:
    """Stage `index` cut out of a model of its own; its weights hold no values yet, those of a `hollow` one have no memory."""
    if layout.schedule.num_shards:
        drop_part(model, "head")  # a shard of it is on every rank
    if index == layout.schedule.num_stages - 1 and takes_head(build(experiment.loss)):
        check_head(part_of(model, "head"), type(experiment.loss).__name__)
    recompute: Any = layout.policies(experiment)[index]
    offload, tiles = experiment.recompute.offload, experiment.recompute.mlp_tiles
    where = index, layout.schedule.num_stages, layout.layers[index], device, autocast
    stage = Stage(model, *where, recompute, offload, tiles, hollow)
    if isinstance(experiment.precision, FP8):
        to_float8(stage.model.layers)
    tied = [part_of(stage.model, part) for part in ("embed", "head")] if stage.tied else []
    for parameter in stage.model.parameters():
        parameter.grad_dtype = gradient_dtype(experiment, parameter)
    for module in tied if leaves(experiment) else ():  # their two gradients meet on the device
        if module is not None:
            module.weight.grad_dtype = torch.float32
    return stage


def gradient_dtype(experiment: Experiment, parameter: torch.Tensor) -> torch.dtype:
    """What a gradient is added up in on the device. Where it leaves after each microbatch, that of a matrix, which is one
    product, needs no more than the weight's format; vectors are sums."""
    precision = build(experiment.precision)
    if leaves(experiment):
        return parameter.dtype if parameter.ndim > 1 else torch.float32
    return getattr(precision, "gradients", precision.parameters)


def leaves(experiment: Experiment) -> bool:
    """Whether gradients leave the device after each microbatch."""
    return isinstance(experiment.update, OnHost) and experiment.update.gradients == "host"


def make_shard(
    experiment: Experiment, layout: Layout, index: int, device: torch.device, autocast: torch.dtype | None
) -> HeadShard:
    """The rows of a spread head that the rank of stage `index` holds; they hold no values yet.

    Raises UserError when the optimizer cannot update a shard by itself.
    """
    rank, shards = index - layout.schedule.num_stages, layout.schedule.num_shards
    shard = HeadShard(make_model(experiment), index, rank, shards, device, autocast)
    shard.weight.grad_dtype = gradient_dtype(experiment, shard.weight)
    if isinstance(experiment.optimizer, Muon) and role(shard.name, shard.weight) == "matrix":
        raise UserError(
            f"parallel.spread_head: Muon would take {shard.name} for a matrix of a layer, and a shard of it cannot be made "
            "orthogonal by itself; name the head lm_head, or write optimizer=AdamW()"
        )
    return shard


def make_loss(experiment: Experiment, device: torch.device) -> Any:
    """The loss. Raises UserError when a kernel that it asks for cannot run on the device."""
    loss = build(experiment.loss)
    if isinstance(loss, ChunkedCrossEntropy):
        loss.require(device)
    return loss


def make_optimizer(
    experiment: Experiment,
    parameters: dict[str, torch.nn.Parameter],
    first_rows: Mapping[str, int] = MappingProxyType({}),
) -> Engine | Foreign | HostOptimizer:
    """The experiment's optimizer over `parameters`, or over their masters on the host; `first_rows` of those that are a part
    of a larger tensor, by number."""
    if isinstance(experiment.update, OnHost):
        return HostOptimizer(parameters, lambda hosts: _optimizer(experiment, hosts, first_rows))
    return _optimizer(experiment, parameters, first_rows)


def _optimizer(
    experiment: Experiment, parameters: dict[str, torch.nn.Parameter], first_rows: Mapping[str, int]
) -> Engine | Foreign:
    rounding = getattr(build(experiment.precision), "rounding", "exact")
    groups = parameter_groups(parameters.items(), Keeping(rounding, experiment.seed, first_rows))
    target = import_target(type(experiment.optimizer))
    if isinstance(target, type) and issubclass(target, Engine):
        return build(experiment.optimizer, params=groups)
    return Foreign(groups, lambda singles: build(experiment.optimizer, params=singles))
