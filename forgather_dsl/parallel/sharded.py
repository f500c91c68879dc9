"""FSDP2: a whole model of which each rank keeps some rows of every matrix, gathered layer by layer when it runs.

In: a hollow stage with all layers. Out: a `Pipeline` of one rank whose parameters are this rank's rows, as plain Parameters,
on torch's `fully_shard` per layer (PyTorch FSDP, arXiv 2304.11277). Vectors, and matrices with fewer rows than ranks, are
whole on every rank: they are a thousandth of the weights, and keep their format. Gradients are summed, never averaged.
Weights are placed and drawn a layer at a time, so that no rank ever holds the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn as nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from forgather_dsl.models.init import initialise_part
from forgather_dsl.models.parts import part_of
from forgather_dsl.parallel.execution import Execution, Forward
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.shard import Rows
from forgather_dsl.parallel.shard_messages import Gather, ReduceScatter
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.schedules import Schedule

__all__ = ["Sharded", "Sharding", "make_mesh"]


@dataclass(frozen=True)
class Sharding:
    """How ranks share a model: `shards` consecutive ranks hold it once, `replicas` times."""

    shards: int
    replicas: int = 1
    reshard_after_forward: bool = True
    offload: bool = False


class Sharded(Pipeline):
    """This rank's shards of a model, which it trains on its share of the batch.

    `stage` is hollow and holds all layers; `rank` is this process among those of `mesh`, from `make_mesh`.
    """

    tells_of_arrivals = False  # of what torch sums by itself; the few others come at the end

    def __init__(
        self,
        stage: Stage,
        schedule: Schedule,
        seed: int,
        rank: int,
        sharding: Sharding,
        mesh: DeviceMesh,
        fill: bool = True,  # with first weights
    ) -> None:
        names = dict(stage.named_parameters())
        self.whole = {name for name, p in names.items() if p.ndim < 2 or p.shape[0] < sharding.shards}
        """Names of what every rank has all of."""
        self.root = _shard(stage, seed if fill else None, mesh, sharding, {names[name] for name in self.whole})
        self.first_set = rank < sharding.shards  # of ranks that hold the model once
        self._trained: dict[str, tuple[nn.Parameter, nn.Parameter]] = {}  # what torch calls the parameter, and ours
        for name, parameter in stage.named_parameters():
            held = parameter.to_local() if isinstance(parameter, DTensor) else None
            own = parameter if held is None else nn.Parameter(held.detach(), parameter.requires_grad)
            self._trained[name] = parameter, own
        super().__init__([stage], schedule, seed, replica=rank)
        self._tied = None  # embedding and head are one Parameter: their gradients meet in it

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This rank's rows, or all of what is whole, by full name."""
        for name, (_, own) in self._trained.items():
            yield name, own

    def rows(self) -> dict[str, Rows]:
        """See `Pipeline.rows`."""
        found: dict[str, Rows] = {}
        for name, (parameter, own) in self._trained.items():
            if isinstance(parameter, DTensor):
                mesh = parameter.device_mesh
                each = -(-parameter.shape[0] // mesh.size(mesh.ndim - 1))
                start = min(each * mesh.get_local_rank(mesh.ndim - 1), parameter.shape[0])
                found[name] = Rows(tuple(parameter.shape), start, own.shape[0])
        return found

    def counted(self) -> set[str]:
        """See `Pipeline.counted`: the rows of the first set, and of what is whole the first rank's."""
        cut = set(self._trained) - self.whole if self.first_set else set()
        return cut | (self.whole if self.replica == 0 else set())

    def summed_later(self) -> set[str]:
        """See `Pipeline.summed_later`: the rest is summed as it comes."""
        return self.whole

    def through(self, forward: Callable[..., torch.Tensor], *about: Any) -> torch.Tensor:
        """Where gathers begin and end."""
        return self.root(forward, *about)

    def _run(
        self,
        schedule: Schedule,
        tokens: Sequence[torch.Tensor],
        forward: Forward,
        targets: Sequence[torch.Tensor] | None = None,
        loss_gradient: float = 0.0,
    ) -> Execution:
        execution = super()._run(schedule, tokens, forward, targets, loss_gradient)
        for parameter, own in self._trained.values():
            if parameter is not own and isinstance(parameter.grad, DTensor):
                own.grad, parameter.grad = cast(DTensor, parameter.grad).to_local(), None
        return execution


class _Root(nn.Module):
    """What gathers hang on: a model, and any way through it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, run: Callable[..., torch.Tensor], *about: Any) -> torch.Tensor:
        """`run(*about)`, which calls parts of the model."""
        return run(*about)


def make_mesh(device: torch.device, sharding: Sharding) -> DeviceMesh:
    """Of all ranks of the process group, which must be there."""
    if sharding.replicas == 1:
        return init_device_mesh(device.type, (sharding.shards,), mesh_dim_names=("shards",))
    return init_device_mesh(device.type, (sharding.replicas, sharding.shards), mesh_dim_names=("replicas", "shards"))


def _shard(stage: Stage, seed: int | None, mesh: DeviceMesh, sharding: Sharding, whole: set[nn.Parameter]) -> _Root:
    """Place, draw and cut the parts of a hollow stage, one after the other; what is left is the root's: the head, and a tied
    embedding, gathered for as long as a microbatch runs."""
    model: Any = stage.model
    embed, norm, head = (part_of(model, part) for part in ("embed", "norm", "head"))
    layers = [model.layers[number] for number in stage.layers]
    everywhere = {name for name, p in stage.named_parameters() if any(p is one for one in whole)}
    offload = CPUOffloadPolicy(pin_memory=stage.device.type == "cuda") if sharding.offload else OffloadPolicy()
    narrow = MixedPrecisionPolicy(stage.autocast, torch.float32 if stage.autocast else None, cast_forward_inputs=False)

    def cut(part: nn.Module, policy: MixedPrecisionPolicy, reshard: bool) -> None:
        ignored = {p for name, p in stage.named_parameters() if name in everywhere}
        about: dict[str, Any] = {
            "mesh": mesh,
            "mp_policy": policy,
            "offload_policy": offload,
            "ignored_params": ignored,
        }
        fully_shard(part, reshard_after_forward=reshard, **about)

    for layer in layers:
        initialise_part(model, layer, seed, stage.device)
        cut(layer, narrow, sharding.reshard_after_forward)
    for part in (embed, norm, head):
        if any(parameter.is_meta for parameter in part.parameters()):  # not a head that is the embedding
            initialise_part(model, part, seed, stage.device)
    wide = MixedPrecisionPolicy(cast_forward_inputs=False)  # autocast narrows these: the embedding's gradient is a sum
    if not stage.tied:
        cut(embed, wide, sharding.reshard_after_forward)
        embed.set_unshard_in_backward(False)  # rows are looked up; their gradient does not read the weight
    root = _Root(model)
    cut(root, wide, False)
    _settle(root, [*([] if stage.tied else [embed]), *layers], stage.device)
    return root


def _settle(root: Any, units: list[Any], device: torch.device) -> None:
    """Sums instead of means; and on a CPU what streams do on a GPU: the next layer is gathered while this one runs."""
    modules = [module for module in root.modules() if isinstance(module, FSDPModule)]
    for module in modules:
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
        if device.type == "cpu":
            module.set_custom_all_gather(cast(Any, Gather()))
            module.set_custom_reduce_scatter(cast(Any, ReduceScatter()))
    if device.type != "cpu":
        return
    for before, after in pairwise(units):
        before.set_modules_to_forward_prefetch([after])
        after.set_modules_to_backward_prefetch([before])
    if hasattr(
        root, "_set_unshard_async_op"
    ):  # the only way there is; without it nothing overlaps, and nothing is wrong
        root._set_unshard_async_op(True)
