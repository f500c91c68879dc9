"""Cross entropy of a chunk of logits by Liger's Triton kernel: one pass that reads them twice and writes their gradient over them.

In: logits, targets. Out: losses in fp32; Liger's own function gives them in the format of the logits, and waits for the GPU
three times a call, so its kernel is launched here directly (https://github.com/linkedin/Liger-Kernel, arXiv 2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..data.loader import IGNORED
from ..errors import UserError

__all__ = ["loss_of", "require_liger"]

_OTHERWISE = "or write kernel='torch'"


def require_liger(device: torch.device) -> None:
    """Raises UserError where the kernel cannot run: no GPU, the package is missing, or another version of it."""
    if device.type != "cuda":
        raise UserError(f"loss.kernel: 'liger' runs on a GPU and this rank is on {device.type}; write kernel='torch'")
    _kernel()


def _kernel() -> Any:
    try:
        from liger_kernel.ops.cross_entropy import liger_cross_entropy_kernel as kernel  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            "loss.kernel: 'liger' needs the package liger-kernel: pip install 'forgather_dsl[kernels]' "
            f"(or: pip install 'liger-kernel>=0.8.5,<0.9'), {_OTHERWISE}"
        ) from error
    if set(kernel.arg_names) != _arguments(None, None, None, 1, 1).keys():
        raise UserError(
            "loss.kernel: 'liger': this version of liger-kernel has another kernel: pip install 'liger-kernel>=0.8.5,<0.9', "
            f"{_OTHERWISE}"
        )
    return kernel


def _scaling() -> Any:
    from liger_kernel.ops.utils import element_mul_kernel  # type: ignore[import-not-found]

    return element_mul_kernel


def _arguments(logits: Any, targets: Any, losses: Any, words: int, block: int) -> dict[str, Any]:
    """Of liger_cross_entropy_kernel in version 0.8.5: a plain sum of negative log likelihoods."""
    return {
        "X_ptr": logits, "X_stride": words, "Y_ptr": targets, "Y_stride": 1, "weight_ptr": None,
        "loss_ptr": losses, "z_loss_ptr": None, "loss_stride": 1, "token_accuracy_ptr": None, "token_accuracy_stride": 0,
        "predicted_tokens_ptr": None, "predicted_tokens_stride": 0, "n_cols": words, "n_non_ignore": 1,
        "sum_non_ignore_weight": 1, "weight_sum": 0.0, "ignore_index": IGNORED, "lse_square_scale": 0.0,
        "label_smoothing": 0.0, "reduction": "sum", "softcap": None, "RETURN_Z_LOSS": False,
        "RETURN_TOKEN_ACCURACY": False, "RETURN_PREDICTED_TOKENS": False, "BLOCK_SIZE": block, "HAS_WEIGHT": False,
        "HAS_SOFTCAPPING": False, "HAS_GRADIENTS": True,
    }  # fmt: skip


def loss_of(logits: Tensor, targets: Tensor, scale: Tensor | None) -> Tensor:
    """The losses [n] of contiguous logits [n, vocab]; given `scale`, the logits become the gradient of their sum times it.

    The scale is a second rounding of the gradient to the format of the logits, half a unit in the last place.
    """
    count, words = logits.shape
    losses = torch.zeros(count, dtype=torch.float32, device=logits.device)
    block = min(65536 // 2, 1 << (words - 1).bit_length())  # as Liger chooses it
    arguments = _arguments(logits, targets, losses, words, block) | {"HAS_GRADIENTS": scale is not None}
    _kernel()[(count,)](**arguments, num_warps=32)
    if scale is not None:  # by a kernel, in fp32: torch would round the scale itself to the format of the logits
        _scaling()[(count,)](logits, words, scale, words, BLOCK_SIZE=block, num_warps=32)
    return losses
