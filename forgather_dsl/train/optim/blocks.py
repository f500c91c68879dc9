"""Optimizer state in 8 bits: each block of a row has a scale and each number a place in a table, finer near zero.

In: fp32 rows. Out: one byte for a number and four for a block of 256, and the rows back. The table is the dynamic one of
8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861): seven decades, each with twice the steps of the one below.
Blocks do not cross rows, so that chunks of rows, shards of a head and pipelines give the same bits.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["BLOCK", "blocks_in", "dequantise", "quantise", "table", "zero"]

BLOCK = 256
_DECADES = 7


def blocks_in(columns: int) -> int:
    """Blocks, and so scales, of a row."""
    return -(-columns // BLOCK)


@functools.cache
def _numbers(signed: bool) -> tuple[float, ...]:
    """256 of them, ascending: from -1 (or 0) to 1."""
    found = [0.0, 1.0]
    for decade in range(_DECADES):
        steps = 2**decade if signed else 2 ** (decade + 1)
        for step in range(steps):
            number = (0.1 + 0.9 * (step + 0.5) / steps) * 10.0 ** (decade - _DECADES + 1)
            found += [number, -number] if signed else [number]
    return tuple(sorted(found))


def table(signed: bool, device: torch.device) -> Tensor:
    """fp32 [256]: what the codes stand for, as shares of the block's largest."""
    return torch.tensor(_numbers(signed), dtype=torch.float32, device=device)


def zero(signed: bool) -> int:
    """The code of 0."""
    return _numbers(signed).index(0.0)


def _limits(signed: bool, device: torch.device) -> Tensor:
    """fp32 [255], halfway between. What is not negative (second moments) becomes 0 only if it is: a square root of 0 in a
    denominator would make the update of a number with a small gradient the largest of all."""
    numbers = _numbers(signed)
    between = [(low + high) / 2 for low, high in itertools.pairwise(numbers)]
    return torch.tensor(between if signed else [0.0, *between[1:]], dtype=torch.float32, device=device)


def quantise(value: Tensor, signed: bool, codes: Tensor, scales: Tensor) -> None:
    """Write fp32 `value [rows, columns]` into uint8 `codes` of its shape and fp32 `scales [rows, blocks]`; uses up `value`."""
    limits = _limits(signed, value.device)
    for columns, blocks in _pieces(value.shape[1]):
        part = value[:, columns].unflatten(1, (-1, min(BLOCK, columns.stop - columns.start)))
        low, high = torch.aminmax(part, dim=-1)
        scale = torch.maximum(high, low.neg_())
        scales[:, blocks] = scale
        part.div_(scale.clamp_(min=torch.finfo(torch.float32).tiny)[..., None])
        codes[:, columns] = torch.bucketize(part.contiguous(), limits, out_int32=True).flatten(1)


def dequantise(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """fp32 of the shape of `codes`."""
    numbers = table(signed, codes.device)
    value = torch.index_select(numbers, 0, codes.reshape(-1).to(torch.int32)).view(codes.shape)
    for columns, blocks in _pieces(codes.shape[1]):
        part = value[:, columns].unflatten(1, (-1, min(BLOCK, columns.stop - columns.start)))
        part.mul_(scales[:, blocks, None])
    return value


def _pieces(columns: int) -> Iterator[tuple[slice, slice]]:
    """Columns of the whole blocks and of what is left of a row, each with its blocks."""
    whole = columns // BLOCK
    if whole:
        yield slice(0, whole * BLOCK), slice(0, whole)
    if columns % BLOCK:
        yield slice(whole * BLOCK, columns), slice(whole, whole + 1)
