"""A pipeline that cannot be is refused before anything runs: the reason, the line, and what to write instead."""

from __future__ import annotations

import os
import subprocess

import pytest

from forgather_dsl.plan.schedules import one_f_one_b, to_csv

BASE = """
from forgather_dsl import DualPipeV, Interleaved, OneFOneB, Schedule, ScheduleFile, VHalf, ZeroBubbleV
from forgather_dsl.plan.schedules import one_f_one_b

class Base(Experiment):
    steps = 10
    batch_size = 4
    microbatch_size = 1
    model = patch(Llama, dim=32, num_layers=6, num_heads=2)

def patient(ranks, microbatches):
    if microbatches < 8:
        raise ValueError(f"{microbatches} microbatches are too few, it takes 8: write batch_size=8")
    return one_f_one_b(ranks, microbatches)

class Patient(Schedule["patient"]):
    pass

class Mine(Base):
    parallel = """

FILES = {
    "good.csv": to_csv(one_f_one_b(2, 4)),
    "few.csv": to_csv(one_f_one_b(2, 2)),
    "three.csv": to_csv(one_f_one_b(3, 4)),
    "circle.csv": "0F0,0F1,0B0,0F2,0F3,0B1,0B2,0B3\n1F0,1F1,1F2,1B0,1B1,1F3,1B2,1B3\n",
    "hole.csv": "0F0,0F1,0F2,0F3,0B0,0B1,0B2,0B3\n1F0,1F1,1F2,1F3,1B0,1B1,1B3\n",
    "prose.csv": "first all forwards\nthen all backwards\n",
}

# what stands on the line of `parallel`, and what the message must say
MISTAKES = {
    "one cut per rank under a V": (
        "Pipeline(stages=2, schedule=ZeroBubbleV(), cuts=(3, 3))",
        ["parallel.cuts", "2 numbers for 4 stages (2 ranks x 2 under ZeroBubbleV)", "one number of layers for each"],
    ),
    "cuts that leave a layer out": (
        "Pipeline(stages=2, schedule=VHalf(), cuts=(1, 2, 1, 1))",
        ["parallel.cuts", "adds up to 5", "6 layers"],
    ),
    "a cut of nothing": ("Pipeline(stages=2, cuts=(6, 0))", ["parallel.cuts", "every stage needs a layer"]),
    "more stages than layers in a V": (
        "Pipeline(stages=4, schedule=DualPipeV())",
        ["parallel.stages", "8 stages (4 ranks x 2 under DualPipeV) for 6 layers", "num_layers=8 or more"],
    ),
    "more chunks than layers": (
        "Pipeline(stages=2, schedule=Interleaved(chunks=4))",
        ["parallel.stages", "8 stages (2 ranks x 4 under Interleaved) for 6 layers"],
    ),
    "no chunks": ("Pipeline(stages=2, schedule=Interleaved(chunks=0))", ["chunks", "0"]),
    "microbatches below the least": (
        "Pipeline(stages=2, schedule=Patient())",
        ["parallel.schedule", "4 microbatches are too few, it takes 8", "write batch_size=8"],
    ),
    "a file that is not there": (
        "Pipeline(stages=2, schedule=ScheduleFile(path='god.csv'))",
        ["parallel.schedule.path", "god.csv cannot be read", "No such file"],
    ),
    "a file that is no schedule": (
        "Pipeline(stages=2, schedule=ScheduleFile(path='prose.csv'))",
        ["prose.csv: row 1: 'first all forwards', row 2", "such as 2F0"],
    ),
    "a file that deadlocks": (
        "Pipeline(stages=2, schedule=ScheduleFile(path='circle.csv'))",
        ["deadlock: rank 0 stops at 0B0, which waits for 1B0", "rank 1 stops at 1F2, which waits for 0F2"],
    ),
    "a file that misses an action": (
        "Pipeline(stages=2, schedule=ScheduleFile(path='hole.csv'))",
        ["1B2 of rank 1 occurs 0 times, its I 0 and its W 0 times"],
    ),
    "a file for other ranks": (
        "Pipeline(stages=2, schedule=ScheduleFile(path='three.csv'))",
        ["three.csv is for 3 ranks, the pipeline has 2", "write stages=3"],
    ),
    "a file for other microbatches": (
        "Pipeline(stages=2, schedule=ScheduleFile(path='few.csv'))",
        ["few.csv is for 2 microbatches", "the experiment has 4", "write microbatch_size=2"],
    ),
    "several at once": (
        "Pipeline(stages=3, schedule=ScheduleFile(path='few.csv'), cuts=(6, 1))",
        ["few.csv is for 2 ranks, the pipeline has 3", "few.csv is for 2 microbatches", "adds up to 7"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("verb", ["run", "graph"])
@pytest.mark.parametrize("name", MISTAKES)
def test_a_pipeline_that_cannot_be_is_told_and_nothing_runs(name, verb, cli, write, project, monkeypatch):
    parallel, said = MISTAKES[name]
    write("m.py", BASE + parallel + "\n")
    for file, text in FILES.items():
        (project / file).write_text(text)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    answer = cli(verb, "m.py:Mine")
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for text in said:
        assert text in answer.err
    assert f"m.py:{len(BASE.splitlines()) + 1}" in answer.err
    assert not os.path.exists("runs")


def test_a_good_file_of_the_same_kind_is_drawn(cli, write, project):
    write("m.py", BASE + "Pipeline(stages=2, schedule=ScheduleFile(path='good.csv'))\n")
    (project / "good.csv").write_text(FILES["good.csv"])
    answer = cli("graph", "m.py:Mine", "--json")
    assert answer.code == 0
    assert [rank["actions"] for rank in answer.json["ranks"]] == [row.split(",") for row in FILES["good.csv"].split()]
