"""`run --smoke` trains the gallery's large models here, on their own number of ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LARGE = (
    "PP4OneFOneB",
    "PP4ZeroBubble",
    "PP4ZeroBubbleH1",
    "PP4GPipe",
    "Llama31PP2",
    "MistralPP4",
    "QwenPP4",
    "PP4ZeroBubbleV",
    "PP4Auto",
)


def run_smoke(name, folder, *more):
    """The run directory of a small run that ended well, and what it said."""
    command = [sys.executable, "-m", "forgather_dsl", "run", f"{ROOT / 'experiments' / 'llama7b.py'}:{name}", "--smoke"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, *more], cwd=folder, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    (path,) = (folder / "runs").glob(f"{name}-smoke-*")
    return path, done.stdout


@pytest.mark.slow
def test_four_ranks_train_what_was_a_llama_of_seven_billion(tmp_path):
    path, said = run_smoke("PP4ZeroBubble", tmp_path, "--set", "batch_size=8")
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    steps = [record for record in records if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert len(steps[-1]["peak_memory_bytes"]) == 4
    assert any("eval_loss" in record for record in records)
    assert "smoke   model: vocab_size 32000 -> 512, dim 4096 -> 64, num_layers 32 -> 4" in said
    config = json.loads((path / "config.json").read_text())
    assert config["model"]["dim"] == 64


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LARGE)
def test_every_large_model_of_the_gallery_trains(name, tmp_path):
    run_smoke(name, tmp_path)
