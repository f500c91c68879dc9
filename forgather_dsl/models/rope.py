"""Rotary position embedding (Su et al., arXiv:2104.09864): positions in, the tables that rotate queries and keys out.

Halves are paired, feature i with i + head_dim/2, as transformers stores them (not neighbours, as the paper draws them).
The sine table carries the sign of the rotation: `x * cos + x.roll(head_dim/2) * sin` gives the bits of the usual
`rotate_half` form in about half its time on CPU (measured, forward and backward). Nothing is kept as a buffer, so
nothing is lost when a model is built on the meta device. Constructors raise `ValueError` for numbers that cannot be.
"""

from __future__ import annotations

import math

import torch
import torch.nn as nn

Tables = tuple[torch.Tensor, torch.Tensor]


class Rope(nn.Module):
    """Rotation by `position * theta**(-2i/head_dim)` in each of the head_dim/2 planes."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise ValueError(
                f"rotary embedding turns pairs of features, and head_dim={head_dim} does not split into pairs: "
                f"write an even head_dim, such as {max(2, head_dim + head_dim % 2)}, or NoRope"
            )
        if theta <= 1:
            raise ValueError(f"theta={theta} is no base for wavelengths: write a number above 1, such as theta=10000.0")
        self.head_dim = head_dim
        self.theta = theta

    def frequencies(self, device: torch.device | str) -> torch.Tensor:
        """Radians per position of each plane, fp32 `[head_dim/2]`."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        return 1.0 / self.theta**exponents

    def tables(self, positions: torch.Tensor, device: torch.device | str) -> Tables:
        """Cosines and signed sines (minus for the first half) of `positions [seq]`, both fp32 `[seq, head_dim]`."""
        angles = torch.outer(positions.to(device, torch.float32), self.frequencies(device))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.head_dim}, theta={self.theta}"


class Llama3Rope(Rope):
    """`Rope` stretched to `factor` times the context it was trained on, as Llama 3.1 does it (arXiv:2407.21783).

    Wavelengths shorter than `original_max_position / high_freq_factor` stay, those longer than
    `original_max_position / low_freq_factor` grow by `factor`, those between are blended.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        factor: float,
        low_freq_factor: float,
        high_freq_factor: float,
        original_max_position: int,
    ) -> None:
        super().__init__(head_dim, theta)
        if factor < 1:
            raise ValueError(f"factor={factor} would shrink the context: write factor >= 1 (Llama 3.1 uses 8.0)")
        if not 0 < low_freq_factor < high_freq_factor:
            raise ValueError(
                f"low_freq_factor={low_freq_factor} and high_freq_factor={high_freq_factor} leave nothing to blend "
                "between: write 0 < low_freq_factor < high_freq_factor (Llama 3.1 uses 1.0 and 4.0)"
            )
        if original_max_position < 1:
            raise ValueError(
                f"original_max_position={original_max_position}: write the context length, in tokens, "
                "that the model was trained on before stretching (Llama 3.1 uses 8192)"
            )
        self.factor = factor
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor
        self.original_max_position = original_max_position

    def frequencies(self, device: torch.device | str) -> torch.Tensor:
        """Radians per position of each plane after stretching, fp32 `[head_dim/2]`."""
        plain = super().frequencies(device)
        wavelengths = 2 * math.pi / plain  # positions per full turn
        turns = self.original_max_position / wavelengths  # within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - keep) * plain / self.factor + keep * plain

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return (
            f"{super().extra_repr()}, factor={self.factor}, low_freq_factor={self.low_freq_factor}, "
            f"high_freq_factor={self.high_freq_factor}, original_max_position={self.original_max_position}"
        )


class NoRope(nn.Module):
    """No rotation: order is known from the causal mask alone (Kazemnejad et al., arXiv:2305.19466)."""

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim

    def tables(self, positions: torch.Tensor, device: torch.device | str) -> None:
        """None: queries and keys are left as they are."""
        return None

    def extra_repr(self) -> str:
        """The size, for `print(model)`."""
        return f"{self.head_dim}"


def rotate(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Rotate `x [batch, seq, heads, head_dim]` by its positions, in fp32 whatever the dtype of x."""
    cos, sin = tables
    half = x.shape[-1] // 2
    return (x * cos[:, None] + x.roll(half, dims=-1) * sin[:, None]).to(x.dtype)
