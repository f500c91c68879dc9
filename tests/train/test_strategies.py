"""Every strategy trains what one process trains, within a stated bound, and hands its checkpoints on (see strategy_ranks.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forgather_dsl import (
    BF16,
    DDP,
    FP8,
    FSDP2,
    Adafactor,
    Experiment,
    FullRecompute,
    InBackward,
    Llama,
    Muon,
    OnHost,
    Pipeline,
    check,
    patch,
)
from forgather_dsl.dsl import ConfigError

HERE = Path(__file__).parent


def run(folder, *options, seconds=280):
    """{case: what is wrong} from one run of the script."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "strategy_ranks.py"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_replicas_and_shards_learn_what_one_process_learns_and_hand_it_on(tmp_path):
    found = run(tmp_path)
    assert found == {"plain ddp2": [], "plain fsdp2": [], "moves plain": []}


@pytest.mark.exhaustive
def test_every_strategy_and_model_and_every_move(tmp_path):
    found = run(tmp_path, "--all", seconds=3000)
    assert len(found) == 5 * 11 + 3 + 1 + 2 + 4
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


class Base(Experiment):
    """What is changed below."""

    steps, batch_size, microbatch_size = 1, 8, 1
    model = patch(Llama, vocab_size=5000, dim=32, num_layers=4, num_heads=4)


def refused(**changes):
    """The fields that are complained of, and the text."""
    with pytest.raises(ConfigError) as raised:
        check(Base(**changes))
    return str(raised.value)


@pytest.mark.parametrize(
    ("field", "says", "changes"),
    [
        ("optimizer", "AdamW()", {"optimizer": Muon()}),
        ("optimizer", "DDP()", {"optimizer": Adafactor()}),
        ("update", "AfterBackward()", {"update": InBackward(), "clip_norm": None}),
        ("update", "FSDP2(offload=True)", {"update": OnHost()}),
        ("precision", "BF16()", {"precision": FP8()}),
        ("precision.gradients", "BF16()", {"precision": BF16(gradients="fp32")}),
        ("compile", "compile = False", {"compile": True}),
        ("recompute.offload", "Pipeline", {"recompute": FullRecompute(offload=True)}),
    ],
)
def test_what_cannot_be_exact_with_shards_is_refused(field, says, changes):
    text = refused(parallel=FSDP2(shards=2), **changes)
    assert field in text
    assert says in text


def test_what_does_not_go_with_replicas_is_refused():
    assert "batch_size = 6 or 9" in refused(parallel=DDP(replicas=3))
    assert "shards" in refused(parallel=FSDP2(shards=3))
    assert "before any update" in refused(parallel=DDP(replicas=2), update=InBackward(), clip_norm=None)
    assert "OnHost(gradients='device')" in refused(parallel=DDP(replicas=2), update=OnHost(gradients="host"))
    shared = Pipeline(stages=2, shard_replicas=True)
    assert "replicas=2" in refused(parallel=shared)
    shared = Pipeline(stages=2, replicas=2, shard_replicas=True, post_validation=True)
    assert "post_validation" in refused(parallel=shared)
    assert "Muon" in refused(parallel=Pipeline(stages=2, replicas=2, shard_replicas=True), optimizer=Muon())


def test_one_shard_or_replica_is_one_process():
    for parallel in (FSDP2(shards=1), DDP(replicas=1)):
        check(Base(parallel=parallel, optimizer=Muon(), update=InBackward(), clip_norm=None))
