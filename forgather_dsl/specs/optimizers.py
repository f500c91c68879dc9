"""Optimizers, and what they keep of every weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import attrs

from ..dsl import Lazy
from .validators import at_least, fraction, fractions, positive, share

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")

States = Literal["fp32", "bf16", "8bit"]
"""Of matrices: four, two or one byte for each number that an optimizer keeps; bf16 is rounded by chance, never to nearest
(arXiv 2010.06192), 8bit has a scale for each 256 numbers of a row (arXiv 2110.02861). The arithmetic is fp32 in any case."""


class Optimizer(Lazy[T], abstract=True, runtime=("params",)):
    """Built with groups of named parameters; weight decay is for matrices, not for norms and biases."""

    lr: float = attrs.field(default=3e-4, validator=positive)
    weight_decay: float = attrs.field(default=0.1, validator=attrs.validators.ge(0.0))


class AdamW(Optimizer["forgather_dsl.train.optim.elementwise.AdamW"]):
    """Adam with decoupled weight decay (https://arxiv.org/abs/1711.05101): two numbers for every weight."""

    betas: tuple[float, float] = attrs.field(default=(0.9, 0.95), validator=fractions)
    eps: float = attrs.field(default=1e-8, validator=positive)
    states: States = "fp32"


class Lion(Optimizer["forgather_dsl.train.optim.elementwise.Lion"]):
    """Steps of one size, by the sign of an average (https://arxiv.org/abs/2302.06675): one number for every weight."""

    lr = 1e-4
    weight_decay = 0.3
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.99), validator=fractions)
    states: States = "fp32"


class SGD(Optimizer["forgather_dsl.train.optim.elementwise.SGD"]):
    """Gradient descent with momentum, one number for every weight; none with momentum=0. The decay is added to the gradient."""

    lr = 0.1
    weight_decay = 0.0
    momentum: float = attrs.field(default=0.9, validator=fraction)
    nesterov: bool = False
    states: States = "fp32"


class Adafactor(Optimizer["forgather_dsl.train.optim.adafactor.Adafactor"]):
    """Second moments by row and column, no momentum (https://arxiv.org/abs/1804.04235): nearly no memory.

    `lr` is absolute; an update's root mean square is at most `clip_rms` times it (None: no limit). The past counts
    1 - step ** -decay.
    """

    decay: float = attrs.field(default=0.8, validator=share)
    eps: float = attrs.field(default=1e-30, validator=positive)
    clip_rms: float | None = attrs.field(default=1.0, validator=positive)


class Muon(Optimizer["forgather_dsl.train.optim.muon.MuonAdamW"]):
    """Momentum made orthogonal for the matrices of the layers (torch.optim.Muon), AdamW for everything else."""

    lr = 0.02
    momentum: float = attrs.field(default=0.95, validator=fraction)
    nesterov: bool = True
    ns_steps: int = attrs.field(default=5, validator=at_least(1))
    adamw_lr: float = attrs.field(default=3e-3, validator=positive)
    betas: tuple[float, float] = attrs.field(default=(0.9, 0.95), validator=fractions)
    eps: float = attrs.field(default=1e-8, validator=positive)
    states: States = "fp32"
