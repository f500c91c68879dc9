"""More rows for a vocabulary, or fewer: exact for the rows that stay, the mean of the known ones for those that are new.

In: a model's rows, the ids of a tokenizer before and after tokens were added. Out: which rows an embedding and a head get.
The mean keeps what the model says of the old tokens nearly as it was, where random rows can take over the distribution
(https://nlp.stanford.edu/~johnhew/vocab-expansion.html). transformers adds noise of 1e-5 of its spread; here equal rows are
told apart by their gradients alone, and the same command gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError

__all__ = ["Rows", "plan_rows"]

CHUNK = 4096  # rows that are summed in float64 at a time


class Rows(NamedTuple):
    """What becomes of the rows of an embedding or a head."""

    old: int
    new: int
    fresh: tuple[int, ...]  # rows that get new values: added tokens, and what no token has
    known: tuple[int, ...]  # rows of tokens that were there, of which the mean is taken
    how: str = "mean"
    std: float = 0.02  # of "init"

    @property
    def same(self) -> bool:
        """Whether nothing changes."""
        return self.old == self.new and not self.fresh

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of the tensor afterwards."""
        return (self.new, *shape[1:])

    def resized(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor `[old, dim]` called `name` as `[new, dim]`, in its own format."""
        if self.same:
            return tensor
        out = torch.empty(self.shape(tuple(tensor.shape)), dtype=tensor.dtype)
        kept = min(self.old, self.new)
        out[:kept] = tensor[:kept]
        if self.fresh:
            out[list(self.fresh)] = self._values(name, tensor).to(tensor.dtype)
        return out

    def _values(self, name: str, tensor: Tensor) -> Tensor:
        """Of the fresh rows: `[dim]` for all, or `[fresh, dim]`."""
        if self.how == "mean":
            total = torch.zeros(tensor.shape[1:], dtype=torch.float64)
            for start in range(0, len(self.known), CHUNK):
                total += tensor[list(self.known[start : start + CHUNK])].double().sum(0)
            return total / len(self.known)
        seed = int.from_bytes(hashlib.sha256(f"{name}/{self.old}/{self.new}".encode()).digest()[:8], "big")
        generator = torch.Generator().manual_seed(seed)
        return torch.empty(len(self.fresh), *tensor.shape[1:]).normal_(0.0, self.std, generator=generator)


def plan_rows(
    old: int,
    before: Collection[int],
    after: Collection[int],
    *,
    vocab_size: int | None = None,
    multiple: int = 1,
    drop: bool = False,
    how: str = "mean",
    std: float = 0.02,
) -> Rows:
    """Which rows a model of `old` rows gets.

    Args:
        before, after: the ids of the tokenizer without and with added tokens; both empty where ids are not known.
        vocab_size: as many rows; None: as many as there are, or as ids need. multiple: rounded up to one of it.
        drop: whether there may be fewer rows than before.

    Raises:
        UserError: ids would have no row, or rows would go that nobody allowed to.
    """
    needed = max(after, default=-1) + 1
    new = max(old, needed) if vocab_size is None else vocab_size
    if multiple < 1 or new < 1:
        raise UserError(f"--vocab-size {vocab_size}, --multiple-of {multiple}: write 1 or more")
    new = -(-new // multiple) * multiple
    if new < needed:
        raise UserError(
            f"--vocab-size {new}: the tokenizer has ids up to {needed - 1}, each of which needs a row; write "
            f"{needed} or more"
        )
    if new < old and not drop:
        raise UserError(
            f"--vocab-size {new}: the model has {old} rows; add --drop-rows if the {old - new} at the end may go"
        )
    if new < old and not after:
        raise UserError(
            f"--vocab-size {new}: nothing says that the {old - new} rows at the end are unused; name the tokenizer"
        )
    added = set(after) - set(before)
    known = tuple(sorted(i for i in before if i < old)) or tuple(range(old))
    fresh = {*range(old, new), *(i for i in added if i < new)}
    return Rows(old, new, tuple(sorted(fresh)), known, how, std)
