"""`doctor --links` with real ranks: numbers of all kinds, a line that `hardware` understands, the same under torchrun."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from forgather_dsl.plan.hardware import parse
from forgather_dsl.plan.measured import Links

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.slow


def test_two_ranks_measure_one_another_and_the_plan_takes_it(cli, project):
    answer = cli("doctor", "--links", "--ranks", "2", "--out", "links.json")
    assert answer.code == 0, answer.err
    assert "2 ranks on " in answer.out
    assert "every rank with both neighbours, each way" in answer.out
    found = json.loads((project / "links.json").read_text())
    assert found["backend"] == "gloo" or found["device"] == "cuda"
    assert len(found["ranks"]) == 2
    assert found["pairs"][0]["ranks"] == [0, 1]
    assert found["hardware"] in answer.out
    line = parse(found["hardware"])
    links = Links.of(found)
    assert line.link == pytest.approx(links.link, rel=0.01)
    assert line.gather == pytest.approx(links.gather, rel=0.01)
    assert 0 < links.latency < 1
    if not links.on_cards:
        plan = cli("plan", f"{ROOT}/experiments/first.py:FirstPP2", "--measured", "links.json", "--json").json
        assert plan["notes"][0].startswith("measured by doctor --links, 2 ranks on 1 host over gloo")
        assert plan["assumptions"]["link_gb_per_second"] == pytest.approx(links.link / 1e9, rel=0.01)
        refused = cli("plan", f"{ROOT}/experiments/first.py:FirstPP2", "--measured", "links.json", "--gpus", "2x24GB")
        assert refused.code == 2
        assert "measure where it runs" in refused.err


@pytest.mark.exhaustive
def test_ranks_of_torchrun_measure_as_the_ranks_they_are(tmp_path):
    program = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "forgather_dsl"]
    command = [sys.executable, *program, "doctor", "--links", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert len(found["ranks"]) == 2
    assert re.match(r"auto,link=\d", found["hardware"])
    wrong = subprocess.run([*command, "--ranks", "3"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "--ranks 3: 2 ranks were started already" in wrong.stderr
