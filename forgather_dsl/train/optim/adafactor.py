"""Adafactor without momentum (arXiv 1804.04235): of a matrix it keeps one fp32 number for each row and each column.

In: rows of a gradient, in three passes: the statistics, the size of the update, the update, clipped to a root mean square. So
no tensor of the matrix's size is made. Sums over rows are taken in the order of a binary tree over row numbers, so that they
do not depend on how many rows a chunk has, on the device or on threads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .engine import Engine, Rule, Target

__all__ = ["Adafactor", "Down", "across"]


def across(values: Tensor) -> Tensor:
    """The sum of each row: [rows, columns] to [rows]. Uses up `values`; halves are added until one column is left."""
    width = values.shape[1]
    while width > 1:
        half = (width + 1) // 2
        values[:, : width - half].add_(values[:, half:width])
        width = half
    return values[:, 0].clone()


class Down:
    """The sum of each column, of chunks of rows that are added one after the other: neighbours first, as a binary tree.

    Every chunk but the last has the same number of rows, a power of two.
    """

    def __init__(self) -> None:
        self._sums: list[tuple[int, Tensor]] = []  # (height in the tree, [columns])

    def add(self, values: Tensor) -> None:
        """The next rows [rows, columns], which are used up."""
        while values.shape[0] > 1:
            pairs, odd = divmod(values.shape[0], 2)
            summed = values[: 2 * pairs : 2] + values[1 : 2 * pairs : 2]
            values = torch.cat([summed, values[-1:]]) if odd else summed
        height, total = 0, values[0].clone()
        while self._sums and self._sums[-1][0] == height:
            height, total = height + 1, self._sums.pop()[1] + total
        self._sums.append((height, total))

    def total(self) -> Tensor:
        """[columns]"""
        _, total = self._sums.pop()
        while self._sums:
            total = self._sums.pop()[1] + total
        return total


class AdafactorRule:
    """Second moments by row and column for matrices, one by one for vectors; the update's root mean square is at most
    `clip_rms`. `decay`: the weight of the past is 1 - step ** -decay."""

    def __init__(self, decay: float, eps: float, clip_rms: float | None) -> None:
        self.decay, self.eps, self.clip_rms = decay, eps, clip_rms

    def update(self, target: Target) -> None:
        """One update."""
        past, rows, columns = 1 - target.step**-self.decay, *target.shape
        factors = self._statistics(target, past) if target.parameter.ndim > 1 else self._squares(target, past)
        by_row = torch.empty(rows, device=target.parameter.device)
        for chunk in target.chunks():
            by_row[chunk] = across(_direction(target, chunk, *factors).square_())
        size = across(by_row[None])[0].div_(rows * columns).sqrt_()
        shrink = size.div_(self.clip_rms).clamp_(min=1.0) if self.clip_rms is not None else torch.ones_like(size)
        for chunk in target.chunks():
            direction = _direction(target, chunk, *factors).div_(shrink).mul_(target.lr)
            weights = target.read(chunk).mul_(1 - target.lr * target.decay).sub_(direction)
            del direction
            target.write(chunk, weights)
            del weights  # before the next rows are read

    def _statistics(self, target: Target, past: float) -> tuple[Tensor, Tensor]:
        """Of a matrix: what its rows [rows, 1] and its columns [columns] are multiplied with."""
        (rows, columns), state, device = target.shape, target.state, target.parameter.device
        by_row, by_column = torch.empty(rows, device=device), Down()
        for chunk in target.chunks():
            squares = target.gradient(chunk).square().add_(self.eps)
            by_column.add(squares)
            by_row[chunk] = across(squares)
            del squares
        row = _averaged(state, "exp_avg_sq_row", by_row.div_(columns), past)
        column = _averaged(state, "exp_avg_sq_column", by_column.total().div_(rows), past)
        mean = across(row.clone()[None]).div_(rows)
        return (row / mean).rsqrt_()[:, None], column.rsqrt()

    def _squares(self, target: Target, past: float) -> tuple[Tensor, Tensor]:
        """The same of a vector, which is one row."""
        squares = target.gradient(slice(0, 1))[0].square().add_(self.eps)
        column = _averaged(target.state, "exp_avg_sq", squares, past).rsqrt()
        return torch.ones(1, 1, device=column.device), column


def _averaged(state: dict[str, Any], key: str, now: Tensor, past: float) -> Tensor:
    """The running average `key` after one more; what it starts with does not count."""
    if key not in state:
        state[key] = torch.zeros_like(now)
    return state[key].mul_(past).add_(now, alpha=1 - past)


def _direction(target: Target, chunk: slice, row: Tensor, column: Tensor) -> Tensor:
    """The unclipped update of some rows, a new tensor."""
    return (target.gradient(chunk) * (row if len(row) == 1 else row[chunk])).mul_(column)


class Adafactor(Engine):
    """Adafactor over groups as `parameter_groups` makes them, at a given learning rate ("relative step" off)."""

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        decay: float,
        eps: float,
        clip_rms: float | None,
    ) -> None:
        self._rule = AdafactorRule(decay, eps, clip_rms)
        super().__init__(params, lr, weight_decay)

    def rule(self, group: dict[str, Any]) -> Rule:
        """One for all."""
        return self._rule
