"""What a layer keeps from F to B under each recompute policy, and needs beside that while it runs, in numbers per token.

In: the parts of a layer, a policy. Out: `LayerCost`. Follows parallel/recipes.py and parallel/replay.py.
"""

from __future__ import annotations

from typing import NamedTuple

from .sizes import Block, PartSize

__all__ = ["LayerCost"]

Numbers = tuple[int, int]  # of the activations' format, and in fp32


class LayerCost(NamedTuple):
    """Numbers per token; `backward` and `inputs` (of I) at each of their high points, beside `kept`."""

    size: PartSize
    kept: Numbers
    running: int  # beside what is kept before it, while F runs and nothing is kept
    backward: tuple[Numbers, ...]
    inputs: tuple[Numbers, ...]

    @classmethod
    def of(cls, block: Block, dim: int, policy: str) -> LayerCost:
        """One layer of a model of width `dim`."""
        size = block.whole
        everything = size.kept, size.kept_fp32
        if policy == "none":
            return cls(size, everything, 0, ((size.backward, 0),), ((size.deferred, 0),))
        if policy == "norms_and_activation":
            return cls(size, (size.kept - size.cheap, size.kept_fp32), 0, *_made_again(block))
        kept, fp32 = dim, 0
        if policy == "keep_attention":
            kept, fp32 = kept + size.attended, fp32 + size.attended_fp32
        back, back_fp32 = size.kept - kept, size.kept_fp32 - fp32  # all of it, at once
        high = tuple(((back + most, back_fp32),) for most in (size.backward, size.deferred))
        return cls(size, (kept, fp32), dim + size.forward, *high)


def _made_again(block: Block) -> tuple[tuple[Numbers, ...], tuple[Numbers, ...]]:
    """High points of B and of I: at the MLP its own results are there again, at the attention they are gone, or owed."""
    norm, attention, mlp = block
    gone = mlp.kept + norm.kept - mlp.cheap - norm.cheap
    backward = mlp.cheap + mlp.backward, attention.cheap + attention.backward - gone
    inputs = mlp.cheap + mlp.deferred, attention.cheap + attention.deferred - gone + mlp.owed
    return tuple((most, 0) for most in backward), tuple((most, 0) for most in inputs)
