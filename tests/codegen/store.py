"""A module that holds a tensor of every number format, for tests of the loader that is written into emitted files."""

from __future__ import annotations

import torch
from torch import nn

FORMATS = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


class Store(nn.Module):
    """Buffers of odd sizes, so that not every one begins aligned; empty ones and numbers without dimensions too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 5)
        self.again = nn.Linear(3, 5)
        self.again.weight = self.linear.weight
        for index, dtype in enumerate(FORMATS):
            self.register_buffer(f"of{index}", torch.arange(7).to(dtype))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("number", torch.tensor(2.5, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.linear(x) @ torch.ones(5, 3)) * self.number
