"""Real ranks train, evaluate and generate exactly as one process does (ranks.py and matrix.py hold the cases)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCHEDULES = [
    "gpipe",
    "1f1b",
    "interleaved",
    "looped-bfs",
    "zb-h1",
    "zb-h2",
    "zb-v",
    "v-half",
    "v-min",
    "dualpipe-v",
    "zb",
    "zb-searched-v",
]


def run(script, folder, *options, seconds=280):
    """{case: what is wrong} from one run of all cases of a script on four forked ranks."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / script), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["codes"] == [0, 0, 0, 0], done.stderr
    return result["cases"]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return run("ranks.py", tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "topic", ["bf16", "all", "frozen", "llama", "cheap", "attention", "torch", "leftovers", "alive", "bubble"]
)
def test_kinds_of_models_and_torchs_engine(found, topic):
    cases = {name: wrong for name, wrong in found.items() if name.split()[0] == topic}
    assert cases
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


@pytest.mark.slow
def test_each_kind_of_model_ran_on_two_ranks_on_four_and_in_a_v(found):
    for model in ("bf16", "all", "frozen", "llama"):
        assert {f"{model} 1F1B 2", f"{model} ZeroBubble 4", f"{model} V 2", f"{model} use 2"} <= found.keys()
    assert {"torch all ZeroBubbleV 4", "torch all ZeroBubbleH1 2", "torch all 1F1B 4"} <= found.keys()


@pytest.fixture(scope="module")
def chunked(tmp_path_factory):
    return run("chunked_ranks.py", tmp_path_factory.mktemp("chunked_ranks"))


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["plain", "tied", "bf16", "bias", "frozen", "torch"])
def test_bits_with_a_chunked_loss_are_those_of_one_process(chunked, topic):
    cases = {name: wrong for name, wrong in chunked.items() if name.split()[0] == topic}
    assert cases
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    return run("matrix.py", tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_bits_under_every_schedule_are_those_of_one_process(matrix, schedule):
    cases = {name: wrong for name, wrong in matrix.items() if name.split()[0] == schedule}
    assert [name.split()[1] for name in cases] == ["1", "2", "4"]
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}


def test_every_option_and_accumulation_took_its_turn(matrix):
    assert {name.split()[2] for name in matrix} == {"plain", "tied", "recompute", "tied+recompute"}
    assert {name.split()[3] for name in matrix} == {"8x2", "9x1"}


@pytest.mark.exhaustive
def test_bits_of_all_combinations(tmp_path):
    cases = run("matrix.py", tmp_path, "--all", seconds=1200)
    assert len(cases) == len(SCHEDULES) * 3 * 4 * 2
    assert {name: wrong for name, wrong in cases.items() if wrong} == {}
