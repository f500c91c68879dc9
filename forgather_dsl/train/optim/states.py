"""How an optimizer keeps what it knows of every weight (moments): in fp32, in bfloat16 rounded by chance, or in 8-bit blocks.

In: rows of fp32 to keep. Out: those rows again. Tensors are in the parameter's state by name, as they are saved: `exp_avg`, and
for 8 bits `exp_avg_scale` beside it. Vectors (norms, biases) stay in fp32: they are few, and their errors would touch all.
A bfloat16 moment rounded to nearest stands still when it moves slowly, so none is: see arXiv 2010.06192, and `round_stochastically`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import blocks
from .noise import Noise, round_stochastically
from .weights import as_matrix

__all__ = ["FORMATS", "SCALE", "Format", "Moment", "format_of", "state_columns"]

SCALE = "_scale"


class Moment(NamedTuple):
    """One of the numbers kept for every weight: the name of its tensor, and whether it can be negative."""

    key: str
    signed: bool = True


class Format:
    """fp32: rows are read as views and changed in place."""

    def make(self, state: dict[str, Any], moment: Moment, parameter: Tensor) -> None:
        """Zeros in the parameter's shape."""
        state[moment.key] = torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)

    def read(self, state: dict[str, Any], moment: Moment, rows: slice) -> Tensor:
        """fp32 [rows, columns], to be changed and handed to `write`."""
        return as_matrix(state[moment.key])[rows]

    def write(
        self, state: dict[str, Any], moment: Moment, rows: slice, value: Tensor, noise: Noise, numbered: range
    ) -> None:
        """Keep `value`, which is used up; its rows are `numbered` in the whole tensor."""


class BF16(Format):
    """Two bytes, rounded up or down by chance."""

    def make(self, state: dict[str, Any], moment: Moment, parameter: Tensor) -> None:
        """Zeros in the parameter's shape."""
        state[moment.key] = torch.zeros_like(parameter, dtype=torch.bfloat16, requires_grad=False)

    def read(self, state: dict[str, Any], moment: Moment, rows: slice) -> Tensor:
        """A new tensor."""
        return super().read(state, moment, rows).float()

    def write(
        self, state: dict[str, Any], moment: Moment, rows: slice, value: Tensor, noise: Noise, numbered: range
    ) -> None:
        """With one throw for each number."""
        into = as_matrix(state[moment.key])[rows]
        round_stochastically(value, noise.bits(moment.key, numbered, into.shape[1], into.device), into)


class EightBit(Format):
    """A byte each and a scale for each block of a row."""

    def make(self, state: dict[str, Any], moment: Moment, parameter: Tensor) -> None:
        """Zeros in the parameter's shape; [rows, blocks] of scales."""
        state[moment.key] = torch.full_like(
            parameter, blocks.zero(moment.signed), dtype=torch.uint8, requires_grad=False
        )
        rows, columns = as_matrix(state[moment.key]).shape
        state[moment.key + SCALE] = torch.zeros(rows, blocks.blocks_in(columns), device=parameter.device)

    def read(self, state: dict[str, Any], moment: Moment, rows: slice) -> Tensor:
        """A new tensor."""
        codes = as_matrix(state[moment.key])[rows]
        return blocks.dequantise(codes, state[moment.key + SCALE][rows], moment.signed)

    def write(
        self, state: dict[str, Any], moment: Moment, rows: slice, value: Tensor, noise: Noise, numbered: range
    ) -> None:
        """To the nearest of the table."""
        codes = as_matrix(state[moment.key])[rows]
        blocks.quantise(value, moment.signed, codes, state[moment.key + SCALE][rows])


FORMATS: dict[str, Format] = {"fp32": Format(), "bf16": BF16(), "8bit": EightBit()}


def format_of(states: str, parameter: Tensor) -> Format:
    """By name, for a parameter: vectors have fp32."""
    return FORMATS[states if parameter.ndim > 1 else "fp32"]


def state_columns(key: str, columns: int) -> int:
    """Columns of the state tensor `key` of a matrix with so many."""
    return blocks.blocks_in(columns) if key.endswith(SCALE) else columns
