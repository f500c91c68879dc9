"""`AutoParallel` in a run: recorded, the same when it goes on, chosen anew on other cards, refused where nothing fits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forgather_dsl import AutoParallel, Experiment, Llama, Pipeline, Single, patch
from forgather_dsl.dsl import replace
from forgather_dsl.errors import UserError
from forgather_dsl.plan import hardware as machines
from forgather_dsl.specs.experiment import world_size
from forgather_dsl.train import directory
from forgather_dsl.train.changes import refuse_changes
from forgather_dsl.train.settled import RECORD, settled

ROOT = Path(__file__).parents[2]
EXPERIMENT = """
from forgather_dsl import AutoParallel, Experiment, Llama, TrainedBPE, patch

class Mine(Experiment):
    seq_len = 64
    batch_size = 8
    steps = 2
    hardware = "2x24GB,link=20GB/s,latency=1us"
    sampling = None
    eval_data = None
    tokenizer = patch(TrainedBPE, vocab_size=512)
    model = patch(Llama, dim=64, num_layers=4, num_heads=2)
    parallel = AutoParallel()
"""


class Mine(Experiment):
    """Two cards and a link."""

    steps = 1
    seq_len = 512
    batch_size = 8
    hardware = "2x24GB,link=3GB/s"
    parallel = AutoParallel()
    model = patch(Llama, dim=1024, num_layers=8, num_heads=16)


def write(experiment, path, record):
    directory.write(experiment, path, None, None, planned={RECORD: record} if record else None)


def test_a_choice_is_recorded_and_stays_when_the_run_goes_on(tmp_path):
    path = str(tmp_path / "run")
    first, record = settled(Mine(), path, None)
    assert isinstance(first.parallel, Pipeline)
    assert record is not None
    assert record["chosen"] in record["reason"]
    assert next(row for row in record["strategies"] if row["this"])["parallel"] == record["chosen"]
    write(first, path, record)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())[RECORD]["ranks"] == 2
    assert directory.read_config(path).parallel == first.parallel
    again, kept = settled(Mine(hardware="2x24GB,link=900GB/s"), path, None)  # another link: no reason to change
    assert again.parallel == first.parallel
    assert again.microbatch_size == first.microbatch_size
    assert kept == record
    assert not [line for line in refuse_changes(again, path, False) if "hardware" not in line]
    same, kept = settled(first, path, None)  # the run itself goes on
    assert same is first
    assert kept == record


def test_other_cards_are_another_choice_with_the_microbatches_of_the_run(tmp_path):
    path = str(tmp_path / "run")
    first, record = settled(Mine(), path, None)
    write(first, path, record)
    alone, record = settled(Mine(hardware="24GB"), path, None)
    assert alone.parallel == Single()
    assert alone.microbatch_size == first.microbatch_size
    assert record is not None
    assert record["ranks"] == 1
    assert any("parallel" in line for line in refuse_changes(alone, path, False))


def test_what_was_not_chosen_has_no_record(tmp_path):
    path = str(tmp_path / "run")
    mine = Mine(parallel=Single())
    assert settled(mine, path, None) == (mine, None)
    write(mine, path, None)
    found, record = settled(Mine(), path, None)  # the run was of a class; now it is chosen
    assert world_size(found) == 2
    assert record is not None


def test_ranks_of_torchrun_settle_how_many_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(machines, "gpus", lambda: ())
    found, _ = settled(Mine(hardware="auto", microbatch_size=1), str(tmp_path / "run"), 2)
    assert world_size(found) == 2
    alone, _ = settled(Mine(hardware="auto", microbatch_size=1), str(tmp_path / "run"), None)
    assert alone.parallel == Single()


def test_nothing_fits_is_refused_with_every_row_and_a_way_out(tmp_path):
    with pytest.raises(UserError) as caught:
        settled(replace(Mine(), hardware="2x1500MB", microbatch_size=1), str(tmp_path / "run"), None)
    told = str(caught.value)
    assert caught.value.exit_code == 3
    assert "AutoParallel() finds nothing that fits: nothing fits on 2x1500MB" in told
    assert "parallel = FSDP2(shards=2): does not fit: rank 0 needs" in told
    assert "try, in the class body:" in told
    assert told.rstrip().endswith("fits")


@pytest.mark.exhaustive
def test_it_trains_and_goes_on_with_what_it_became(tmp_path):
    (tmp_path / "mine.py").write_text(EXPERIMENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def train(*options):
        command = [sys.executable, "-m", "forgather_dsl", "run", "mine.py:Mine", "--no-model", *options]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)

    done = train()
    assert done.returncode == 0, done.stderr
    assert "AutoParallel: " in done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    record = json.loads((run / "plan.json").read_text())[RECORD]
    assert record["chosen"] in done.stderr
    longer = train("--set", "steps=4", "--out", str(run))
    assert longer.returncode == 0, longer.stderr
    assert json.loads((run / "plan.json").read_text())[RECORD] == record
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line][-1] == 4
    assert "parallel:" not in longer.stdout
