"""An MLP that runs over the tokens in tiles, forward and backward, so that only one tile's hidden features exist at a time.

In: a module that treats each token by itself, `[batch, seq, dim]` to the same. Out: the same module, whose training forward
keeps its input alone and whose backward runs each tile again. Weight gradients are added a tile after the other, in their
order: as so many more microbatches would add them, to within rounding of the whole, and the same bits under every
schedule, as W runs what I has queued in that order. After ALST (arXiv 2506.13996).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from forgather_dsl.errors import UserError
from forgather_dsl.models.parts import largest_dropout
from forgather_dsl.parallel.autocast import autocast_now
from forgather_dsl.parallel.weight_gradients import WeightGradients

__all__ = ["tile_mlp"]


def tile_mlp(layer: nn.Module, tiles: int, gradients: WeightGradients) -> None:
    """Have the module `mlp` of a layer run in `tiles` tiles when it trains, in place.

    Raises UserError when there is no such module, or it draws random numbers.
    """
    module = getattr(layer, "mlp", None)
    if not isinstance(module, nn.Module):
        raise UserError(
            f"recompute.mlp_tiles: a {type(layer).__name__} has no module `mlp` to run in tiles; write mlp_tiles=1"
        )
    if largest_dropout(module) > 0:
        raise UserError("recompute.mlp_tiles: an MLP with dropout draws other numbers in tiles; write mlp_tiles=1")
    module.forward = partial(_forward, module.forward, tiles, gradients, list(module.parameters()))


def _forward(run: Any, tiles: int, gradients: WeightGradients, parameters: list[nn.Parameter], x: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return run(x)
    return _Tiled.apply(x, run, tiles, gradients, *parameters)  # type: ignore[return-value]


class _Tiled(Function):
    # The parameters are inputs so that the output requires grad also where `x` does not.
    @staticmethod
    def forward(ctx, x, run, tiles, gradients, *parameters):
        ctx.run, ctx.tiles, ctx.gradients, ctx.autocast = run, tiles, gradients, autocast_now(x.device)
        ctx.save_for_backward(x)
        if gradients.watcher is not None:
            gradients.watcher.meets(x)
        y = None
        with gradients.watched_by(None):
            for begin, end in _spans(x, tiles):
                part = run(_rows(x)[:, begin:end])
                y = part.new_empty(*x.shape[:-1], part.shape[-1]) if y is None else y
                _rows(y)[:, begin:end] = part
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):  # type: ignore[override]
        (x,) = ctx.saved_tensors
        needs_x, products = ctx.needs_input_grad[0], _Products()
        grad = torch.empty_like(x) if needs_x else None
        for begin, end in _spans(x, ctx.tiles):
            part = _rows(x)[:, begin:end].detach().requires_grad_(needs_x)
            with torch.enable_grad(), ctx.autocast(), ctx.gradients.watched_by(products):
                y = ctx.run(part)
            products.learn(y)
            torch.autograd.backward(y, _rows(grad_output)[:, begin:end])
            if grad is not None and part.grad is not None:
                _rows(grad)[:, begin:end] = part.grad
        return (grad, *(None,) * (len(ctx.needs_input_grad) - 1))


class _Products:
    """Spares the last product of a tile from the second on, where it is the tile's result: only its inputs are needed."""

    def __init__(self) -> None:
        self.met = 0
        self.last: int | None = None

    def meets(self, x: Tensor) -> bool:
        """Whether to multiply."""
        self.met += 1
        return self.met != self.last

    def learn(self, y: Tensor) -> None:
        """`y` is a tile's result."""
        if type(y.grad_fn).__name__ == "_LinearBackward":
            self.last = self.met
        self.met = 0


def _rows(x: Tensor) -> Tensor:
    """All tokens in a row: `[1, tokens, dim]`."""
    return x.reshape(1, -1, x.shape[-1])


def _spans(x: Tensor, tiles: int) -> Iterator[tuple[int, int]]:
    """Where each tile begins and ends; as many tokens in each, but in the last perhaps."""
    tokens = x.numel() // x.shape[-1]
    size = -(-tokens // tiles)
    yield from ((begin, min(begin + size, tokens)) for begin in range(0, tokens, size))
