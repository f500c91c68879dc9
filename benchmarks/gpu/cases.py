"""The cases of gpu_7b.py: one recipe trained under the cap, or run rank by rank, and what is told of it beside the plan."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from report import GIB, Report, shrunk

from forgather_dsl import Bytes, Experiment, Pipeline, Stdlib
from forgather_dsl.dsl import replace
from forgather_dsl.plan import cards
from forgather_dsl.plan import hardware as machines
from forgather_dsl.plan.prediction import predict
from forgather_dsl.specs.experiment import num_replicas

__all__ = ["run"]

MICROBATCHES = 8  # of a step, in place of the recipe's
STEPS = 3
TARGET = "RTX 4090"


def run(part: str, name: str, out: Path, small: bool) -> None:
    """Rows of one case, into `out/results.jsonl`."""
    report = Report(f"{part}-{name}", out, small)
    experiment = _on_bytes(getattr(importlib.import_module("llama7b"), name)())
    experiment = _few_layers(shrunk(experiment)) if small else experiment
    {"a": _trained, "b": _replayed, "c": _trained}[part](report, experiment)


def _few_layers(experiment: Experiment) -> Experiment:
    parallel = experiment.parallel
    if isinstance(parallel, Pipeline):
        parallel = replace(parallel, cuts=None)
    return replace(experiment, model=replace(experiment.model, num_layers=8), parallel=parallel)


def _on_bytes(recipe: Experiment) -> Experiment:
    """The recipe on text that is here, a few steps of a few microbatches; its model with all of its vocabulary."""
    parallel = recipe.parallel
    if isinstance(parallel, Pipeline):
        parallel = replace(parallel, ranks_per_gpu=parallel.stages * parallel.replicas)
    return replace(
        recipe,
        data=Stdlib(),
        tokenizer=Bytes(),
        model=recipe.model,
        parallel=parallel,
        batch_size=MICROBATCHES * recipe.microbatch_size * num_replicas(recipe),
        tokens=None,
        steps=STEPS,
        log_every=1,
        eval_every=None,
        save_every=None,
        eval_data=None,
        sampling=None,
        loggers=(),
    )


def _trained(report: Report, experiment: Experiment) -> None:
    """Peaks of each rank beside the plan, losses, speed: of one card for one rank, of all ranks on one card for several."""
    from capped import capped_run
    from runs import losses, told

    run, ranks = capped_run(experiment, report.out)
    plan = json.loads((report.out / "plan.json").read_text())
    for planned, found in zip(plan["ranks"], ranks, strict=True):
        asked = planned["peak_gib"] - planned["memory_gib"]["overhead"]
        off = 100 * (asked / found["allocated"] - 1) if "allocated" in found else None
        report.row(
            rank=planned["rank"],
            planned=asked,
            off_percent=off,
            planned_with_overhead=planned["peak_gib"],
            **found,
        )
    steps = [record["step_seconds"] for record in run.metrics if "step_seconds" in record]
    rate = told(run.metrics, "tokens_per_second")
    report.row(
        ranks_on_this_card=len(ranks),
        losses=losses(run.metrics),
        step_seconds=steps,
        tokens_per_second=rate,
        mfu=told(run.metrics, "mfu"),
    )
    if len(ranks) == 1 and rate:
        low, high = _slower(report)
        report.row(projection=f"1 x {TARGET}, by peaks, not measured", tokens_per_second=[rate / high, rate / low])


def _replayed(report: Report, experiment: Experiment) -> None:
    """Each rank alone, then all of them in the simulator."""
    import torch
    from alone import replayed, run_alone
    from capped import cap

    cap()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    planned = predict(experiment, machines.parse(experiment.hardware))
    ranks = []
    for memory in planned.memory.ranks:
        alone = run_alone(experiment, planned.layout, memory.rank, device)
        ranks.append(alone)
        report.row(
            rank=memory.rank,
            planned=(memory.total - memory.overhead) / GIB,
            **alone.memory,
            seconds={stage: times._asdict() for stage, times in alone.stages.items()},
            update=alone.update,
            actions=alone.actions,
        )
    _tell(report, f"{len(ranks)} cards like this one", replayed(experiment, ranks, _here(device, len(ranks))))
    target = machines.parse(f"{len(ranks)}x{TARGET.replace(' ', '')}")
    for slower in _slower(report):
        name = f"projection: {len(ranks)} x {TARGET}, {slower:.2f} times as long, by peaks, not measured"
        _tell(report, name, replayed(experiment, ranks, target, slower))
    _tell(report, "the plan alone", planned)


def _tell(report: Report, what: str, run: Any) -> None:
    report.row(
        replayed=what,
        step_seconds=run.step_seconds,
        tokens_per_second=run.tokens_per_second,
        mfu=run.mfu,
        bubble=run.bubble,
    )


def _here(device: Any, count: int) -> machines.Hardware:
    """Cards like the one at hand."""
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    card = cards.by_name(name)
    return machines.parse(f"{count}x{card.name.replace(' ', '')}" if card else f"{count}x24GB")


def _slower(report: Report) -> tuple[float, float]:
    """How many times longer the target takes than this card, at the least and the most: products and copies as measured
    here, over the target's data sheet.
    """
    import torch
    from kernels import DEVICE, DTYPE, seconds

    card = cards.by_name(TARGET)
    assert card is not None
    size, wide = (256, 1 << 16) if report.small else (8192, 1 << 30)
    a, b = (torch.randn(size, size, device=DEVICE, dtype=DTYPE) for _ in range(2))
    one = torch.empty(wide, dtype=torch.uint8, device=DEVICE)
    products, copies = 2 * size**3 / seconds(lambda: a @ b) / 1e12, 2 * wide / seconds(lambda: one.clone()) / 1e9
    ratios = sorted((products / card.bf16_tflops, copies / card.bandwidth_gbs))
    report.row(bf16_tflops=products, copy_gb_per_s=copies, slower=ratios)
    return ratios[0], ratios[1]
