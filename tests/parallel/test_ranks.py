"""Two and four real ranks train, evaluate and generate exactly as one process does (see ranks.py for the cases)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{case: what is wrong} from one run of all cases on four forked ranks."""
    root = HERE.parents[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "ranks.py"), str(tmp_path_factory.mktemp("ranks"))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["codes"] == [0, 0, 0, 0], done.stderr
    return result["cases"]


@pytest.mark.parametrize(
    "topic", ["plain", "tied", "dropout", "recompute", "bf16", "all", "frozen", "llama", "leftovers"]
)
def test_bits_are_those_of_one_process(found, topic):
    cases = {name: wrong for name, wrong in found.items() if name.split()[0] == topic}
    assert cases
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


def test_every_schedule_ran_on_two_and_four_ranks(found):
    for schedule in ("gpipe", "1f1b", "zb-h1", "zb"):
        for ranks in (2, 4):
            assert f"all {schedule} {ranks}" in found
            assert f"plain {schedule} {ranks}" in found
    assert {"all V B 2", "all V I+W 2", "plain use 2", "plain use 4"} <= found.keys()
