"""The parts a rank trains with, built from the experiment: its stages, its shard of a spread head, its optimizer.

In: an experiment and its layout. Out: modules whose weights hold no values yet, and an optimizer over their parameters.
"""

from __future__ import annotations

from typing import Any

import torch

from ..dsl import build
from ..errors import UserError
from ..models.parts import drop_part, part_of
from ..parallel.float8 import to_float8
from ..parallel.losses import takes_head
from ..parallel.shard import HeadShard
from ..parallel.stage import Stage
from ..plan.layout import Layout
from ..specs import FP8, Experiment, FullRecompute, Muon
from .chunked_loss import ChunkedCrossEntropy, check_head
from .master import ExactMaster
from .optimizers import parameter_groups, role

__all__ = ["make_loss", "make_model", "make_optimizer", "make_shard", "make_stage"]


def make_model(experiment: Experiment) -> Any:
    """The whole model on the meta device, in the format that the precision keeps weights in."""
    with torch.device("meta"):
        model: Any = build(experiment.model)
    return model.to(build(experiment.precision).parameters)


def make_stage(
    experiment: Experiment, model: Any, layout: Layout, index: int, device: torch.device, autocast: torch.dtype | None
) -> Stage:
    """Stage `index` cut out of a model of its own; its weights hold no values yet."""
    if layout.schedule.num_shards:
        drop_part(model, "head")  # a shard of it is on every rank
    if index == layout.schedule.num_stages - 1 and takes_head(build(experiment.loss)):
        check_head(part_of(model, "head"), type(experiment.loss).__name__)
    recompute = "full" if isinstance(experiment.recompute, FullRecompute) else "none"
    stage = Stage(model, index, layout.schedule.num_stages, layout.layers[index], device, autocast, recompute)
    if isinstance(experiment.precision, FP8):
        to_float8(stage.model.layers)
    return stage


def make_shard(
    experiment: Experiment, layout: Layout, index: int, device: torch.device, autocast: torch.dtype | None
) -> HeadShard:
    """The rows of a spread head that the rank of stage `index` holds; they hold no values yet.

    Raises UserError when the optimizer cannot update a shard by itself.
    """
    rank, shards = index - layout.schedule.num_stages, layout.schedule.num_shards
    shard = HeadShard(make_model(experiment), index, rank, shards, device, autocast)
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


def make_optimizer(experiment: Experiment, parameters: dict[str, torch.nn.Parameter]) -> Any:
    """The experiment's optimizer over `parameters`; over their fp32 masters where they are narrower."""
    groups = parameter_groups(parameters.items())
    if build(experiment.precision).parameters == torch.float32:
        return build(experiment.optimizer, params=groups)
    return ExactMaster(groups, lambda masters: build(experiment.optimizer, params=masters))
