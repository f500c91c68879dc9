"""Ranks begin with folders of transformers, train a step, and what is exported has the same bits (weights_ranks.py has the cases)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_every_family_goes_in_through_two_stages_and_out(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "weights_ranks.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["codes"]) == {0}, done.stderr
    assert found["cases"] == {name: [] for name in found["cases"]}
    assert len(found["cases"]) == 8
    assert len(found["checked"]) == 3
    assert all(line.endswith("the same logits, bit for bit") for line in found["checked"])
