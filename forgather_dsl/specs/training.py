"""How training goes beside the optimizer: learning-rate schedules, precision, loss, recomputing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import attrs

from ..dsl import Lazy
from .validators import at_least, share

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")


class LRSchedule(Lazy[T], abstract=True):
    """A factor on every group's learning rate, over the progress of the run (0 to 1)."""


class Constant(LRSchedule["forgather_dsl.train.lr.Constant"]):
    """Warm up, then stay."""

    warmup: float = attrs.field(default=0.0, validator=share)


class WarmupCosine(LRSchedule["forgather_dsl.train.lr.WarmupCosine"]):
    """Linear warm-up, then half a cosine down to `final` (https://arxiv.org/abs/1608.03983)."""

    warmup: float = attrs.field(default=0.02, validator=share)  # share of the run
    final: float = attrs.field(default=0.1, validator=share)  # of the peak


class WarmupStableDecay(LRSchedule["forgather_dsl.train.lr.WarmupStableDecay"]):
    """Linear warm-up, a plateau, a linear decay over the last `decay` of the run (https://arxiv.org/abs/2404.06395)."""

    warmup: float = attrs.field(default=0.02, validator=share)
    decay: float = attrs.field(default=0.2, validator=share)
    final: float = attrs.field(default=0.0, validator=share)

    def __check__(self) -> Any:
        if self.warmup + self.decay > 1:
            yield "decay", f"warm-up {self.warmup} and decay {self.decay} together exceed the run"


class Precision(Lazy[T], abstract=True):
    """In which number format parameters are kept and computed with."""


class FP32(Precision["forgather_dsl.train.precision.FP32"]):
    """Everything in 32 bits."""


class BF16Mixed(Precision["forgather_dsl.train.precision.BF16Mixed"]):
    """Parameters in 32 bits, matrix products in bfloat16 where the device is fast at them; on CPU this is FP32."""


class BF16(Precision["forgather_dsl.train.precision.BF16"]):
    """Weights, gradients and activations in bfloat16. `rounding` says how updates smaller than its steps are not lost:
    `exact` keeps the 16 bits that an fp32 master has more (2 bytes a weight, the numbers of fp32; arXiv 2512.15306), `kahan`
    what rounding left (2 bytes, nearly), `stochastic` rounds by chance (nothing, right on average; arXiv 2010.06192).
    `nearest` loses most of a small update, and says at the start how much. `gradients` says what those of microbatches are
    added up in: bfloat16 loses 0.6 % at 32 of them, fp32 takes two bytes a weight more.
    """

    rounding: Literal["exact", "stochastic", "kahan", "nearest"] = "exact"
    gradients: Literal["bf16", "fp32"] = "bf16"


class FP8(BF16):
    """As `BF16`, but products in layers have float8 factors, e4m3 forward and e5m2 for gradients, scaled tensor by tensor;
    embedding, head and norms stay bfloat16. Takes compute capability 8.9 or more (arXiv 2209.05433).
    """

    __target__: ClassVar[Any] = "forgather_dsl.train.precision.FP8"

    emulate: bool = False  # on a CPU, slowly: the same rounding, for tests


class Loss(Lazy[T], abstract=True):
    """From logits and targets to a sum over valid tokens; the trainer divides by their global number."""


class CrossEntropy(Loss["forgather_dsl.train.loss.CrossEntropy"]):
    """Negative log likelihood of the next token, in fp32."""


class ChunkedCrossEntropy(Loss["forgather_dsl.train.chunked_loss.ChunkedCrossEntropy"]):
    """The same loss without ever holding the logits of a whole microbatch: `chunk` tokens at a time go through the head,
    forward and backward. What a vocabulary of 32k to 150k takes, at no extra product.
    """

    chunk: int = attrs.field(default=1024, validator=at_least(1))  # tokens
    kernel: Literal["torch", "liger"] = "torch"  # liger: one kernel for the loss of a chunk (GPU, liger-kernel)
