"""A spread head on two and four real ranks against one process, within a stated bound (see spread_ranks.py for the cases)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{case: what is wrong} from one run of all cases on four forked ranks."""
    root = HERE.parents[1]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "spread_ranks.py"), str(tmp_path_factory.mktemp("spread_ranks"))]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["codes"] == [0, 0, 0, 0], done.stderr
    return result["cases"]


@pytest.mark.parametrize("topic", ["plain", "recompute", "frozen", "bf16", "llama", "targets"])
def test_a_spread_head_learns_what_a_whole_one_does(found, topic):
    cases = {name: wrong for name, wrong in found.items() if name.split()[0] == topic}
    assert cases
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


def test_every_schedule_ran_on_two_and_four_ranks(found):
    expected = {f"plain {schedule} {ranks}" for schedule in ("gpipe", "1f1b", "zb-h1", "use") for ranks in (2, 4)}
    assert expected | {"plain v 2", "llama use 4"} <= found.keys()
