"""How a stage runs its layers in training: what each keeps from F to B, and where.

In: the name of a policy. Out: `Keeping`, which runs a layer so that its graph holds what the policy keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from forgather_dsl.parallel.holding import Held, on_device
from forgather_dsl.parallel.offload import Offload
from forgather_dsl.parallel.recipes import keep_inputs
from forgather_dsl.parallel.replay import Replay
from forgather_dsl.parallel.weight_gradients import WeightGradients

__all__ = ["Keeping", "Policy"]

Policy = Literal["none", "norms_and_activation", "keep_attention", "full"]


class Keeping:
    """One stage's way: a policy, and where what it keeps waits (`offload`; None: where it is).

    Raises ValueError for a policy that is not known.
    """

    def __init__(self, policy: Policy, gradients: WeightGradients, offload: Offload | None) -> None:
        if policy not in get_args(Policy):
            raise ValueError(
                f"recompute={policy!r} is not known: write one of {', '.join(map(repr, get_args(Policy)))}"
            )
        self.policy, self.gradients, self.offload = policy, gradients, offload

    def begin(self) -> None:
        """A microbatch enters the stage."""
        if self.offload is not None:
            self.offload.begin()

    def run(self, layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """`layer(x)`, the same bits."""
        hold = on_device if self.offload is None else self.offload.layer(x).hold
        if self.policy == "norms_and_activation":
            return keep_inputs(layer, x, hold)
        if self.policy != "none":
            return Replay(layer, x, self.gradients, hold, self.policy == "keep_attention").forward(x)
        if self.offload is None:
            return layer(x)
        with saved_tensors_hooks(hold, _bring):
            return layer(x)


def _bring(held: Held) -> Tensor:
    return held()
