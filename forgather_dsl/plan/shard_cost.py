"""What one microbatch costs on a shard of a spread head, in bytes, as `stage_cost` has it for a stage."""

from __future__ import annotations

from ..specs import Experiment
from .memory import Held, State, passes
from .sizes import ModelSize
from .stage_cost import StageCost

__all__ = ["shard_cost"]


def shard_cost(experiment: Experiment, size: ModelSize, shards: int, state: State) -> StageCost:
    """One microbatch on the largest shard of a spread head: hidden states and the softmax over its rows, F to W."""
    part = size.head_shard(shards)
    tokens, rows = experiment.microbatch_size * experiment.seq_len, part.matrices // size.dim
    message = tokens * state.number_bytes * size.dim
    kept = Held(activations=message, loss=tokens * state.number_bytes * rows)  # F takes it, W gives it back as owed
    lasting = Held(weights=state.casts(part))
    wide = Held(activations=message, loss=tokens * 4 * rows if state.number_bytes < 4 else 0)
    product = Held(activations=2 * part.matrices if state.apart else 0)
    gradients = Held(gradients=state.gradient_bytes * part.parameters)
    if passes(experiment, state):
        freed = gradients.plus(product).plus(Held(gradients=state.update([(part, False)])))
        return StageCost(
            kept, kept, lasting, Held(), lasting.plus(kept).plus(wide), Held(), Held(), freed, Held(), freed
        )
    return StageCost(
        kept=kept, owed=kept, lasting=lasting, gradients=gradients, forward=lasting.plus(kept).plus(wide),
        backward=Held(), inputs=Held(), weights=product, first_backward=Held(), first_weights=gradients.plus(product),
    )  # fmt: skip
