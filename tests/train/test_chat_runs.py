"""Runs on packed conversations have the same bits on two stages and in two halves (chat_ranks.py has the runs)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_packed_runs_repeat_their_bits_over_stages_and_resume(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "chat_ranks.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["codes"]) == {0}, done.stderr
    runs = found["runs"]
    assert len(runs["one"]["losses"]) >= 4
    assert runs["two"] == runs["one"]
    assert runs["halves"]["losses"] == runs["one"]["losses"]
    assert runs["halves"]["eval"] == runs["one"]["eval"]
    assert runs["mixed"]["losses"] != runs["one"]["losses"], "conversations would have seen one another"
    assert runs["one"]["eval"]["eval_bits_per_byte"] > 0
    assert isinstance(found["answer"], str)
    assert all(sample.startswith("3 plus 3?\n-> ") for sample in found["samples"])
    assert found["defaults"] == [True, 3]
    assert "conversations in" in done.stderr
