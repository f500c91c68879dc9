"""Random bits for stochastic rounding, from a hash of where they are used: no generator, no state, the same on every device.

In: seed, step, the parameter's name, what is rounded, the row in the whole tensor, the column. Out: 16 bits for each number.
So a resumed run draws the same bits, and so does a shard of a tensor, a chunk of rows, or a stage of another pipeline.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Noise", "round_stochastically"]

_FIRST, _SECOND, _GOLDEN = 0x7FEB352D, 0x846CA68B - 2**32, 0x9E3779B9 - 2**32  # as int32, where products wrap round


class Noise(NamedTuple):
    """The bits of one parameter in one step."""

    seed: int
    step: int
    name: str

    def bits(self, purpose: str, rows: range, columns: int, device: torch.device) -> Tensor:
        """int32 [rows, columns], each uniform over 0 .. 65535; `rows` as numbered in the whole tensor."""
        text = f"{self.seed}/{self.step}/{self.name}/{purpose}".encode()
        digest = hashlib.blake2b(text, digest_size=8).digest()
        by_row, by_column = (int.from_bytes(part, "little", signed=True) for part in (digest[:4], digest[4:]))
        down = torch.arange(rows.start, rows.stop, dtype=torch.int32, device=device).mul_(_GOLDEN).add_(by_row)
        across = torch.arange(columns, dtype=torch.int32, device=device).mul_(_GOLDEN).add_(by_column)
        mixed = _mix(_mix(down)[:, None] + _mix(across)[None])
        return mixed.bitwise_right_shift_(16).bitwise_and_(0xFFFF)


def _mix(x: Tensor) -> Tensor:
    """A hash of every int32, in place: two rounds of shift and multiply, the constants of
    https://github.com/skeeto/hash-prospector (lowbias32). The upper half of the result is used."""
    x.bitwise_xor_(x.bitwise_right_shift(16).bitwise_and_(0xFFFF)).mul_(_FIRST)
    x.bitwise_xor_(x.bitwise_right_shift(15).bitwise_and_(0x1FFFF)).mul_(_SECOND)
    return x


def round_stochastically(value: Tensor, bits: Tensor, into: Tensor) -> None:
    """Write fp32 `value` into bfloat16 `into`, up or down with the odds of where it lies between: unbiased.

    Uses up `value`. Sixteen random bits are added to the sixteen that are cut off (arXiv 2010.06192, section 3).
    """
    into.view(torch.int16).copy_(value.view(torch.int32).add_(bits).bitwise_right_shift_(16))
