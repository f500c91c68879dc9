"""Rows of a part of the check: printed as they come, kept as JSON lines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, TypeVar

from forgather_dsl import Experiment
from forgather_dsl.dsl import replace

__all__ = ["GIB", "Report", "has_gpu", "shrunk"]

GIB = 2**30
E = TypeVar("E", bound=Experiment)


class Report:
    """What one part finds. `small`: sizes for a CPU, to see that the part runs."""

    def __init__(self, part: str, out: Path, small: bool) -> None:
        self.part, self.small = part, small
        self.results, self.out = out / "results.jsonl", out / part
        self.out.mkdir(parents=True, exist_ok=True)

    def row(self, **fields: Any) -> None:
        """One line of the table."""
        shown = "  ".join(f"{name}={_short(value)}" for name, value in fields.items())
        print(f"{self.part:<9} {shown}", flush=True)
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps({"part": self.part, **fields}) + "\n")

    def sized(self, experiment: E) -> E:
        """Itself, or a model that a CPU has in a second."""
        return shrunk(experiment) if self.small else experiment

    def used_memory(self) -> float:
        """GiB of the first card that anybody uses; 0 without one."""
        try:
            import pynvml  # type: ignore[import-not-found]

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            return pynvml.nvmlDeviceGetMemoryInfo(handle).used / GIB
        except Exception:  # no package, no driver, no card: all the same here
            return 0.0


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def shrunk(experiment: E) -> E:
    """The same with narrow layers and short sequences."""
    sizes = {"dim": 64, "num_heads": 4, "num_kv_heads": 4, "ffn_dim": 128, "vocab_size": 300}
    return replace(experiment, model=replace(experiment.model, **sizes), seq_len=64)


def has_gpu() -> bool:
    """Whether torch finds a card."""
    import torch

    return torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
