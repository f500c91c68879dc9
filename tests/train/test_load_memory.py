"""Four ranks take their stages of a folder of many shards, and hold and read nothing else (load_ranks.py does it)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from load_ranks import SHARD

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell what is resident")
def test_a_rank_holds_and_reads_its_stages_alone(tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "load_ranks.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found["codes"]) == {0}, done.stderr
    assert found["files"] > 4
    assert sum(rank["own"] for rank in found["ranks"]) == found["total"]
    for rank in found["ranks"]:
        assert rank["same"], "it reads the tensors of its stages, no others"
        assert rank["read"] == rank["own"]
        assert rank["grown"] < rank["own"] + SHARD, "while it reads; the halves of masters are touched first then"
        assert rank["whole"] < 2 * rank["own"] + 2 * SHARD, "weights, what masters have beside, a chunk at first"
        assert rank["whole"] > rank["own"] / 2, "something was measured"
