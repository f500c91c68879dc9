"""The check of a GPU: it says so where there is none, and its parts run in their small form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / "benchmarks" / "gpu" / "gpu_check.py"


def check(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    return subprocess.run(
        [sys.executable, str(CHECK), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )


@pytest.mark.slow
def test_without_a_gpu_nothing_is_checked(tmp_path: Path) -> None:
    done = check("--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "no GPU here" in done.stdout
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.slow
def test_its_parts_run_small(tmp_path: Path) -> None:
    """One of each file; a later call adds to what is there."""
    parts = ("embedding", "decode", "exactly", "starved", "seven")
    for some in (parts[:2], parts[2:]):
        done = check("--small", "--out", str(tmp_path), "--parts", *some)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(row["part"] for row in rows)) == list(parts)
    assert all(row["index_put_repeats"] for row in rows if row["part"] == "embedding")
    [losses] = [row["losses"] for row in rows if "losses" in row]
    assert len(losses) == 3
    assert losses[0] > losses[-1]
