"""What a layer keeps from F to B under each recompute policy, and needs beside that while it runs, in numbers per token.

In: the parts of a layer, a policy, tiles of its MLP, whether what it keeps goes to the host. Out: `LayerCost`. Follows
parallel/recipes.py, parallel/replay.py, parallel/tiles.py and parallel/offload.py.
"""

from __future__ import annotations

from typing import NamedTuple

from .sizes import Block, PartSize

__all__ = ["WINDOW", "LayerCost"]

WINDOW = 2  # layers whose tensors are on the device while they travel to the host or back

Numbers = tuple[int, int]  # of the activations' format, and in fp32


class LayerCost(NamedTuple):
    """Numbers per token; `backward` and `inputs` (of I) at each of their high points, beside what is kept or has come back."""

    size: PartSize
    kept: Numbers  # on the device
    host: int
    running: int  # beside what is kept before it, while F runs and nothing is kept
    backward: tuple[Numbers, ...]
    inputs: tuple[Numbers, ...]

    @classmethod
    def of(cls, block: Block, dim: int, policy: str, tiles: int, offload: bool) -> LayerCost:
        """One layer of a model of width `dim`."""
        if tiles > 1:
            block = block._replace(mlp=_tiled(block.mlp, dim, tiles))
        size = block.whole
        kept, running, backward, inputs = _by_policy(block, size, dim, policy, tiles)
        host = kept[0] if offload else 0
        return cls(size, (kept[0] - host, kept[1]), host, running, backward, inputs)


def _by_policy(
    block: Block, size: PartSize, dim: int, policy: str, tiles: int
) -> tuple[Numbers, int, tuple[Numbers, ...], tuple[Numbers, ...]]:
    """Kept, running, and the high points of B and I."""
    kept, fp32, running = size.kept, size.kept_fp32, 0
    if policy == "norms_and_activation":
        kept -= size.cheap
        backward, inputs = _made_again(block)
    else:
        if policy != "none":
            kept, fp32 = dim, 0
        if policy == "keep_attention":
            kept, fp32 = kept + size.attended, fp32 + size.attended_fp32
        back, back_fp32 = size.kept - kept, size.kept_fp32 - fp32  # all of it, at once
        backward, inputs = ((back + size.backward, back_fp32),), ((back + size.deferred, back_fp32),)
    if policy in ("keep_attention", "full"):
        running = dim + size.forward
        backward, inputs = ((size.forward, 0), *backward), ((size.forward, 0), *inputs)  # while it runs again
    elif tiles > 1:
        running = kept + block.norm.cheap + block.mlp.forward
    return (kept, fp32), running, backward, inputs


def _made_again(block: Block) -> tuple[tuple[Numbers, ...], tuple[Numbers, ...]]:
    """High points of B and of I: at the MLP its own results are there again, at the attention they are gone, or owed."""
    norm, attention, mlp = block
    gone = mlp.kept + norm.kept - mlp.cheap - norm.cheap
    backward = mlp.cheap + mlp.backward, attention.cheap + attention.backward - gone
    inputs = mlp.cheap + mlp.deferred, attention.cheap + attention.deferred - gone + mlp.owed
    return tuple((most, 0) for most in backward), tuple((most, 0) for most in inputs)


def _tiled(mlp: PartSize, dim: int, tiles: int) -> PartSize:
    """An MLP that keeps its input alone. Backward: the gradient of that, and a tile's forward and backward; what I owes W
    lasts over the tiles.
    """
    tile = mlp.kept - dim + 2 * dim  # its hidden features, its result and its gradient for the input
    owed = mlp.owed - 2 * dim  # without the input and the gradient of the result, which are there in one piece
    return mlp._replace(
        kept=dim,
        kept_fp32=0,
        cheap=0,
        forward=dim + -(-mlp.forward // tiles),
        backward=dim + -(-(tile + mlp.backward) // tiles),
        deferred=dim + owed * (tiles - 1) // tiles + -(-(tile + mlp.deferred) // tiles),
    )
