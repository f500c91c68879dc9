"""What a layer keeps from its forward to its backward pass, and what it computes again instead."""

from __future__ import annotations

from typing import Any

import attrs

from ..dsl import Lazy
from .validators import at_least

__all__ = [
    "POLICIES",
    "AutoRecompute",
    "FullRecompute",
    "KeepAttention",
    "NoRecompute",
    "NormsAndActivation",
    "Recompute",
    "policy",
    "untileable",
]


class Recompute(Lazy[Any], abstract=True):
    """Which activations a stage computes again in the backward pass instead of keeping them. Results are the same bits."""

    offload: bool = False  # what is kept waits in pinned memory of the host; the device holds that of two layers
    mlp_tiles: int = attrs.field(
        default=1, validator=at_least(1)
    )  # of the tokens, which the MLP takes one after the other
    leave_gib: float = attrs.field(
        default=0.0, validator=attrs.validators.ge(0.0)
    )  # of each card, that what the planner chooses (policies, layers, searched orders) leaves free


class NoRecompute(Recompute):
    """Keep everything."""


class NormsAndActivation(Recompute):
    """Make outputs of norms, activation functions and their products again: half the memory, and no matrix product and no
    attention twice (https://arxiv.org/abs/2512.15306).
    """


class KeepAttention(Recompute):
    """Keep each layer's input and what attention gave; everything else runs twice. For long sequences."""


class FullRecompute(Recompute):
    """Keep each layer's input only (activation checkpointing, https://arxiv.org/abs/1604.06174)."""


class AutoRecompute(Recompute):
    """On each stage the one of the four that recomputes least and fits the memory of its card; layers are split to go with
    that.
    """

    leave_gib = 2.5


POLICIES: dict[str, type[Recompute]] = {
    "none": NoRecompute,
    "norms_and_activation": NormsAndActivation,
    "keep_attention": KeepAttention,
    "full": FullRecompute,
}
"""By name, the least recomputing first."""


def policy(recompute: Recompute) -> str | None:
    """The name of what every stage does; None where the planner chooses."""
    return next((name for name, spec in POLICIES.items() if isinstance(recompute, spec)), None)


def untileable(model: Any) -> str | None:
    """The class of an MLP that is not known to treat each token by itself, so that it cannot run in tiles. Ours are; others
    say so by `__token_wise__ = True` in their spec's class.
    """
    part = getattr(model, "mlp", None)
    choose = getattr(type(part), "__choose__", None)  # Cycle: another part in each layer
    parts = [part] if choose is None else [choose(part, {"layer_index": i}) for i in range(model.num_layers)]
    for one in parts:
        ours = str(getattr(type(one), "__target__", "")).startswith("forgather_dsl.models.mlp.")
        if not ours and not getattr(type(one), "__token_wise__", False):
            return type(model if part is None else one).__name__
    return None
