"""Number formats: what parameters and their gradients are kept in, and what products of matrices are computed in.

Optimizers compute in 32 bits whatever the format (optim.engine), and keep their state as they are told."""

from __future__ import annotations

import torch


class FP32:
    """32 bits everywhere."""

    parameters = gradients = torch.float32

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """The format that a forward pass casts to, or None for none."""
        return None


class BF16Mixed:
    """bfloat16 products on GPUs that are fast at them, else as `FP32`."""

    parameters = gradients = torch.float32

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """bfloat16 from compute capability 8.0 on."""
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if fast else None


class BF16:
    """bfloat16 weights, gradients and activations; updates are added to weights by `rounding` (optim.weights)."""

    parameters = torch.bfloat16

    def __init__(self, rounding: str, gradients: str) -> None:
        self.rounding = rounding
        self.gradients = torch.float32 if gradients == "fp32" else torch.bfloat16  # that microbatches are added up in

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """None: everything has the format already."""
        return None


class FP8(BF16):
    """As `BF16`; linear layers of the blocks multiply in float8 (`parallel.float8`)."""

    def __init__(self, rounding: str, gradients: str, emulate: bool) -> None:
        super().__init__(rounding, gradients)
        self.emulate = emulate
