"""Parts of the check at the size of 7 B: four ranks on one card, each held to a share of it; a measured profile and the plan."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

from capped import capped_run
from report import Report
from runs import fit, losses, told

from forgather_dsl import (
    BF16,
    Bytes,
    Experiment,
    FullRecompute,
    Interleaved,
    Llama,
    Muon,
    OneFOneB,
    Pipeline,
    Stdlib,
    ZeroBubble,
    ZeroBubbleV,
    patch,
)


class Seven(Experiment, abstract=True):
    """experiments/llama7b.py's Llama 2 7B, on bytes: the data of the recipe has to be downloaded."""

    data = Stdlib()
    tokenizer = Bytes()
    seq_len = 4096
    batch_size = 8
    microbatch_size = 1
    steps = 3
    log_every = 1
    loggers = ()
    precision = BF16()
    optimizer = Muon(adamw_lr=3e-4)
    recompute = FullRecompute()
    sampling = None
    eval_data = None
    model = patch(Llama, dim=4096, num_layers=32, num_heads=32, ffn_dim=11_008, vocab_size=32_000)


class OnFour(Seven):
    """Four cards of 24 GB, as far as the plan knows."""

    hardware = "4x24GB"
    parallel = Pipeline(stages=4, schedule=OneFOneB(), ranks_per_gpu=4)


SCHEDULES: dict[str, Any] = {
    "1F1B": OneFOneB(),
    "ZeroBubble": ZeroBubble(),
    "Interleaved": Interleaved(),
    "ZB-V": ZeroBubbleV(),
}


class Quarter(Seven):
    """Eight of the layers, on one process: what one rank of four computes, and the ends."""

    model = patch(Llama, num_layers=8)


def seven(report: Report, schedule: str = "1F1B", seq_len: int | None = None) -> None:
    """The real model under one schedule."""
    more: dict[str, Any] = {} if seq_len is None else {"seq_len": seq_len}
    parallel = Pipeline(stages=4, schedule=SCHEDULES[schedule], ranks_per_gpu=4)
    experiment = report.sized(OnFour(parallel=parallel, **more))
    place = report.out / f"{schedule}-{experiment.seq_len}"
    started = time.perf_counter()
    run, told_by = capped_run(experiment, place)
    wall = time.perf_counter() - started
    plan = json.loads((place / "plan.json").read_text())
    for planned, found in zip(plan["ranks"], told_by, strict=True):
        report.row(
            schedule=schedule,
            seq_len=experiment.seq_len,
            rank=planned["rank"],
            planned=(asked := planned["peak_gib"] - planned["memory_gib"]["overhead"]),
            off_percent=100 * (asked / found["allocated"] - 1) if "allocated" in found else None,
            planned_with_overhead=planned["peak_gib"],
            **found,
        )
    steps = [record["step_seconds"] for record in run.metrics if "step_seconds" in record]
    report.row(
        schedule=schedule,
        losses=losses(run.metrics),
        step_seconds=steps,
        tokens_per_second=told(run.metrics, "tokens_per_second"),
        bubble=told(run.metrics, "bubble"),
        planned_bubble=plan["bubble"],
        wall=wall,
    )


def schedules(report: Report) -> None:
    """Other schedules at half of the length; each is a run of its own."""
    for name in ("ZeroBubble",):
        seven(report, name, None if report.small else 2048)


def profile(report: Report) -> None:
    """What one process takes for a step, as modelled, as simulated from a measured profile, and as it is."""
    from forgather_dsl.plan.planner import plan
    from forgather_dsl.plan.profile import read_profile
    from forgather_dsl.train import directory
    from forgather_dsl.train.session import Session

    experiment, place = report.sized(Quarter()), report.out / "quarter"
    directory.write(experiment, str(place), None, None)
    file = report.out / "profile.json"
    command = [sys.executable, "-m", "forgather_dsl.train.profile", str(place / "config.json"), str(file)]
    subprocess.run(command, env=os.environ | {"FORGATHER_TRUST": "1"}, check=True, timeout=120)
    measured = json.loads(file.read_text())["seconds"]
    report.row(layer=measured["layers"][0], embedding=measured["embedding"], head=measured["head"])
    modelled = plan(experiment, None, None).run
    simulated = plan(experiment, None, read_profile(str(file))).run
    Session.save = lambda self, wait=False: ""  # type: ignore[method-assign]
    records = fit(experiment, place)
    steps = [record["step_seconds"] for record in records if "step_seconds" in record]
    report.row(
        modelled_step=modelled.step_seconds,
        simulated_step=simulated.step_seconds,
        optimizer=simulated.optimizer_seconds[0],
        steps=steps,
        mfu=told(records, "mfu"),
        modelled_mfu=modelled.mfu,
        tokens_per_second=told(records, "tokens_per_second"),
    )
