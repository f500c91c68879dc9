"""An experiment that trains in a second, and parts of users' own in it: a norm that draws random numbers, a logger that fails."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forgather_dsl import AdamW, Bytes, Experiment, Llama, Norm, Source, TextFiles, patch
from forgather_dsl.specs import Logger


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, log_every = 32, 4, 2, 6, 1
    sampling, loggers = None, ()
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=2, num_heads=2)
    optimizer = AdamW()


def small(folder: Path, **changes: Any) -> Small:
    """`Small` on a corpus in `folder`."""
    corpus = folder / "corpus"
    corpus.mkdir(exist_ok=True)
    for number in range(30):
        lines = [f"def function_{number}_{i}(x, y={i}):\n    return x * {i} + y - {number}\n" for i in range(12)]
        (corpus / f"file{number}.txt").write_text("\n".join(lines))
    data: Source = TextFiles(paths=str(corpus), held_out=0.2)
    return Small(data=data, **changes)


class NoisyNorm(torch.nn.Module):
    """Scales by a number that comes from all the generators that everybody shares."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        torch.nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x + 0.1 * torch.randn_like(x) + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * np.random.randn()
        return torch.nn.functional.rms_norm(x, x.shape[-1:], self.weight)


class Noisy(Norm[NoisyNorm]):
    """Draws from Python's, numpy's and torch's generators."""


class Cut:
    """A logger that ends the run at a step, as a power cut would."""

    def __init__(self, at: int) -> None:
        self.at = at

    def log(self, record: dict[str, Any]) -> None:
        if "loss" in record and record["step"] == self.at:
            raise RuntimeError("the power went out")

    def close(self) -> None:
        """Nothing is open."""


class PowerCut(Logger[Cut]):
    """Ends the run."""

    at: int = 1
