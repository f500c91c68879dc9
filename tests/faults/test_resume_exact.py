"""Interrupted is uninterrupted, bit for bit, under any layout before and after (resume_ranks.py has the cases)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


def run(folder: Path, *options: str, seconds: int = 900) -> dict[str, Any]:
    """What differs by case, and how often runs went on elsewhere, from one run of the script."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "resume_ranks.py"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["codes"]) == {0}, done.stderr
    return result


def test_losses_weights_and_optimizer_are_those_of_the_uninterrupted_run(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert found["cases"] == {name: [] for name in found["cases"]}
    assert (len(found["cases"]), found["hops"]) == (2, 3)


@pytest.mark.exhaustive
def test_the_same_from_any_number_of_stages_and_schedule_into_any_other(tmp_path: Path) -> None:
    found = run(tmp_path, "--all", seconds=900)
    assert found["cases"] == {name: [] for name in found["cases"]}
    assert (len(found["cases"]), found["hops"]) == (21, 38)
