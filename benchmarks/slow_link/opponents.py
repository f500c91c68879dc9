"""torch's own data parallelism over modules that wait: DDP, FSDP2 as shipped, and FSDP2 tuned as well as gloo allows.

gloo puts FSDP2 at a disadvantage that a GPU does not have, so it is taken away here. Its reduce-scatter is an all-reduce and
blocks: ours is an all-to-all and a local sum, runs beside the backward on a group of its own, and ends with the step.
All-gathers run beside the computing, layers ahead, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from slow_link.theory import Setting
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from waiting import WIDTH, Waiter, WaitingLayer

__all__ = ["ddp", "fsdp"]

AHEAD = 3  # layers gathered ahead of need: one leaves the link idle at times (benchmarks/LOG.md), four gain nothing


class _Model(nn.Module):
    def __init__(self, setting: Setting, waiter: Waiter) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.zeros(WIDTH))
        self.layers = nn.ModuleList(WaitingLayer(setting.layer_floats, waiter) for _ in range(setting.layers))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding.expand(*ids.shape, WIDTH)
        for layer in self.layers:
            x = layer(x)
        return x


class _ReduceScatter:
    """All-to-all and a local sum, under way while the backward goes on; `finish` before gradients are read."""

    def __init__(self) -> None:
        self.group = dist.new_group()
        self.started: list[tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Where FSDP puts what it hands over."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Any, input_tensor: Any, group: Any, op: Any, async_op: bool = False) -> None:
        parts = torch.empty_like(input_tensor)
        work = dist.all_to_all_single(parts, input_tensor, group=self.group, async_op=True)
        self.started.append((work, parts, input_tensor, output_tensor))

    def finish(self) -> None:
        """Wait, and write the means into the gradients: views of the outputs."""
        for work, parts, _, output in self.started:
            work.wait()
            torch.mean(parts.view(dist.get_world_size(), -1), 0, out=output.view(-1))
        self.started.clear()


def _step(model: nn.Module, setting: Setting, finish: Callable[[], None], layers: str = "layers") -> Callable[[], None]:
    ids = torch.zeros(setting.microbatches // setting.ranks, setting.tokens, dtype=torch.long)

    def step() -> None:
        model(ids).sum().backward()
        finish()
        for layer in model.get_submodule(layers).children():
            gradient: Any = layer.weight.grad
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            if not (local[0] == 1 and local[-1] == 1):  # the mean over ranks of ones
                raise RuntimeError("gradients were not reduced when the step ended")
        for parameter in model.parameters():
            parameter.grad = None

    return step


def _waiter(setting: Setting) -> Waiter:
    """Every rank computes all layers, for its share of the sequences."""
    return Waiter(dict.fromkeys("FIW", setting.share * setting.microbatches / setting.ranks))


def fsdp(setting: Setting, tuned: bool, keep_weights: bool = False) -> tuple[Callable[[], None], Waiter]:
    """A step, and what counts its computing. `keep_weights`: no second gather, every card holds the whole model."""
    model = _Model(setting, waiter := _waiter(setting))
    mesh = init_device_mesh("cpu", (setting.ranks,))
    layers: list[Any] = [*model.layers]
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, reshard_after_forward=not keep_weights)
    if not tuned:
        return _step(model, setting, lambda: None), waiter
    scatter, root = _ReduceScatter(), model
    for part in (*layers, root):
        part._set_unshard_async_op(True)  # private: without it gathers block on a CPU
        part.set_custom_reduce_scatter(scatter)
    for place, layer in enumerate(layers):
        layer.set_modules_to_forward_prefetch(layers[place + 1 : place + 1 + AHEAD])
        layer.set_modules_to_backward_prefetch(layers[max(0, place - AHEAD) : place][::-1])
    root.set_modules_to_forward_prefetch(layers[:AHEAD])  # type: ignore[operator]
    return _step(model, setting, scatter.finish), waiter


def ddp(setting: Setting) -> tuple[Callable[[], None], Waiter]:
    """The same under DistributedDataParallel, a bucket for each layer: it reduces beside the backward."""
    model = _Model(setting, waiter := _waiter(setting))
    bucket = setting.layer_floats * 4 / 2**20
    replica = nn.parallel.DistributedDataParallel(model, bucket_cap_mb=bucket)
    return _step(replica, setting, lambda: None, "module.layers"), waiter
