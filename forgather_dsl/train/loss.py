"""The loss: a sum over valid tokens. The trainer divides by the number of valid tokens of the whole step, never a mean of means."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..data.loader import IGNORED


class CrossEntropy:
    """Negative log likelihood in nats, computed in fp32."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum over positions whose target is not ignored. logits [batch, seq, vocab], targets [batch, seq] -> scalar.

        The losses are added as `chunked_loss` adds them, all in one sum, so that both have the same bits.
        """
        flat, wanted = logits.flatten(0, 1).float(), targets.flatten()
        return F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none").sum()
