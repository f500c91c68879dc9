"""Number formats: what products of matrices are computed in. Parameters, gradients and optimizer state stay in 32 bits."""

from __future__ import annotations

import torch


class FP32:
    """32 bits everywhere."""

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """The format that a forward pass casts to, or None for none."""
        return None


class BF16Mixed:
    """bfloat16 products on GPUs that are fast at them, else as `FP32`."""

    def autocast(self, device: torch.device) -> torch.dtype | None:
        """bfloat16 from compute capability 8.0 on."""
        fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if fast else None
