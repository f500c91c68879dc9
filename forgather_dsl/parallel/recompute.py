"""How a stage runs its layers in training: what each keeps from F to B, and where.

In: the name of a policy. Out: `run_layer(run, x)`, the layer's output with a graph that holds what the policy keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor

from forgather_dsl.parallel.deferred import WeightGradients
from forgather_dsl.parallel.recipes import keep_inputs
from forgather_dsl.parallel.replay import Held, Hold, Replay

__all__ = ["Policy", "Run", "run_layer_with"]

Policy = Literal["none", "norms_and_activation", "keep_attention", "full"]
Run = Callable[[Tensor], Tensor]


def run_layer_with(policy: Policy, gradients: WeightGradients) -> Callable[[Run, Tensor], Tensor]:
    """A function `(run, x)` to the layer's output. Raises ValueError for a policy that is not known."""
    if policy not in get_args(Policy):
        raise ValueError(f"recompute={policy!r} is not known: write one of {', '.join(map(repr, get_args(Policy)))}")
    hold: Hold = on_device
    if policy == "none":
        return lambda run, x: run(x)
    if policy == "norms_and_activation":
        return lambda run, x: keep_inputs(run, x, hold)
    keep_attention = policy == "keep_attention"
    return lambda run, x: Replay(run, x, gradients, hold, keep_attention).forward(x)


def on_device(tensor: Tensor) -> Held:
    """Keeps a tensor where it is. Bringing it back raises RuntimeError when it was changed in place, as autograd would."""
    version = tensor._version

    def bring() -> Tensor:
        if tensor._version != version:
            raise RuntimeError(
                "a tensor that a layer needs in its backward was changed in place after the layer had used it: write that "
                "layer without an operation in place"
            )
        return tensor

    return bring
