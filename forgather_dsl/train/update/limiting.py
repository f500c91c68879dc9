"""Steps an optimizer, all parameters or one, with each tensor's update limited by itself (`Update.clip_rms`).

The limit is StableAdamW's (https://arxiv.org/abs/2304.13013, algorithm 2): with v the second moment after this gradient g,
both free of bias, RMS = sqrt(mean(g^2 / max(v, eps^2))), and the tensor's learning rate is divided by max(1, RMS / clip_rms).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...specs import Experiment

__all__ = ["Stepping", "rms_over_second_moment"]

ROWS = 1 << 18  # numbers at a time, so that no copy of a whole matrix is made


class Stepping:
    """An optimizer over named `parameters`, and what limits each tensor's update: `experiment.update.clip_rms`."""

    def __init__(self, optimizer: Any, parameters: Mapping[str, Tensor], experiment: Experiment) -> None:
        self.optimizer, self.parameters, self.clip_rms = optimizer, parameters, experiment.update.clip_rms
        about: Any = experiment.optimizer
        self._beta, self._eps = (about.betas[1], about.eps) if self.clip_rms is not None else (0.0, 0.0)
        self._groups = {name: group for group in optimizer.param_groups for name in group["param_names"]}
        self._states = {name: state for name, _, state in optimizer.named_states()}

    def all(self) -> None:
        """Every parameter that has a gradient."""
        if self.clip_rms is None:
            self.optimizer.step()
            return
        for name in self._groups:
            if self.parameters[name].grad is not None:
                self.one(name)

    def one(self, name: str) -> None:
        """One parameter that has a gradient, by name."""
        group = self._groups[name]
        lr = group["lr"]
        try:
            group["lr"] = lr / self._excess(name)
            self.optimizer.step_one(name)
        finally:
            group["lr"] = lr

    def _excess(self, name: str) -> float:
        """What the learning rate is divided by, 1 or more."""
        if self.clip_rms is None:
            return 1.0
        state, gradient = self._states[name], self.parameters[name].grad
        assert gradient is not None
        step, second = int(state.get("step", 0)) + 1, state.get("exp_avg_sq")
        rms = rms_over_second_moment(gradient, second, step, self._beta, self._eps)
        return max(1.0, rms / self.clip_rms)


@torch.no_grad()
def rms_over_second_moment(gradient: Tensor, second: Tensor | None, step: int, beta: float, eps: float) -> float:
    """See the module's docstring; `second` is the second moment before this gradient, None for zeros, `step` from 1."""
    flat, total = gradient.flatten(), torch.zeros((), dtype=torch.float64, device=gradient.device)
    before = None if second is None else second.flatten()
    for start in range(0, len(flat), ROWS):
        square = flat[start : start + ROWS].float().square()
        moment = (
            square * (1 - beta)
            if before is None
            else torch.lerp(before[start : start + ROWS].float(), square, 1 - beta)
        )
        total += square.div_(moment.div_(1 - beta**step).clamp_(min=eps * eps)).sum(dtype=torch.float64)
    return float(total / max(1, len(flat))) ** 0.5
