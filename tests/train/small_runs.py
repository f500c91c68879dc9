"""Small runs for tests: scripts in processes of their own, losses read back, a logger that fails on demand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file


class PowerCut:
    """A logger that ends the run at a step, as a power cut would: nothing is saved any more."""

    def __init__(self, at: int) -> None:
        self.at = at

    def log(self, record: dict[str, Any]) -> None:
        if "loss" in record and record["step"] == self.at:
            raise RuntimeError("the power went out")

    def close(self) -> None:
        """Nothing is open."""


class SometimesInfinite:
    """Cross entropy, but infinite where the targets of a microbatch have an unlucky sum, at times with finite gradients."""

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")
        luck = int(targets.sum() % 26)
        return loss * torch.inf if luck == 4 else loss + torch.inf if luck in (11, 17) else loss


def run_script(text: str, folder: Path, name: str = "script.py", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own."""
    (folder / name).write_text(textwrap.dedent(text))
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **env}
    return subprocess.run(
        [sys.executable, name], cwd=folder, capture_output=True, text=True, env=environment, timeout=900
    )


def losses(path: Path | str) -> list[tuple[int, str]]:
    """(step, loss in hex) of every training record."""
    records = [json.loads(line) for line in (Path(path) / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], float(r["loss"]).hex()) for r in records if "loss" in r]


def records(path: Path | str, key: str) -> list[dict[str, Any]]:
    """Every record that has `key`."""
    lines = (Path(path) / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if key in r]


def weights(path: Path | str, everything: bool = False) -> dict[str, torch.Tensor]:
    """Every weight of the newest checkpoint, or every tensor."""
    newest = sorted((Path(path) / "checkpoints").glob("step-????????"))[-1]
    tensors: dict[str, torch.Tensor] = {}
    for file in newest.glob("*.safetensors"):
        tensors.update(load_file(file))
    return {k: v for k, v in tensors.items() if everything or k.startswith("weights/")}
