"""The same with transformers 4.57, where `FORGATHER_TRANSFORMERS_4` names a folder that has it (pip install --target)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OLDER = "FORGATHER_TRANSFORMERS_4"
SCRIPT = Path(__file__).with_name("with_transformers.py")


def test_logits_are_the_same_in_and_out(tmp_path: Path) -> None:
    place = os.environ.get(OLDER, "")
    if not place:
        pytest.skip(f"{OLDER} names no folder with transformers 4.57")
    env = os.environ | {"PYTHONPATH": os.pathsep.join([place, str(SCRIPT.parents[2])])}
    command = [sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["version"].startswith("4.57.")
    assert len(found["said"]) == 16
    wrong = {name: lines for name, lines in found["said"].items() if "the same logits, bit for bit" not in lines[0]}
    assert wrong == {}
