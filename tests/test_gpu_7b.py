"""The check of recipes of 7 B: it says so where there is no GPU, runs in its small form, and goes on where it stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECK = Path(__file__).parents[1] / "benchmarks" / "gpu_7b.py"


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


def test_without_a_gpu_nothing_is_run(tmp_path: Path) -> None:
    done = check("--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert "no GPU here" in done.stdout
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_each_part_runs_small_and_is_not_run_again(tmp_path: Path) -> None:
    out = ("--small", "--out", str(tmp_path))
    done = check(*out, "--parts", "b", "--seconds", "0")
    assert done.returncode == 5
    assert "the same command goes on" in done.stdout
    done = check(*out, "--only", "PP4OneFOneB")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {case: found["rows"] for case, found in json.loads((tmp_path / "finished.json").read_text()).items()}
    trained, alone = (rows[f"{part} PP4OneFOneB"] for part in "ab")
    assert [row["rank"] for row in trained if "planned" in row] == [0, 1, 2, 3]
    [losses] = [row["losses"] for row in trained if "losses" in row]
    assert len(losses) == 3
    assert losses[0] > losses[-1]
    assert [row["actions"] for row in alone if "actions" in row] == [16] * 4
    here, fast, slow, _ = (row["tokens_per_second"] for row in alone if "replayed" in row)
    assert here > 0
    assert fast > slow > 0
    assert all("not measured" in row["replayed"] for row in alone if row.get("replayed", "").startswith("projection"))
    done = check(*out, "--only", "Llama31OneCard")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "finished.json").read_text())["c Llama31OneCard"]["rows"]
    assert [row["rank"] for row in rows if "planned" in row] == [0]
    [losses] = [row["losses"] for row in rows if "losses" in row]
    assert losses[0] > losses[-1]
    again = check(*out, "--only", "PP4OneFOneB")
    assert again.returncode == 0
    assert again.stdout.count("done before") == 2
