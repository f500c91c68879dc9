"""Parts of the check that train: bits, resuming, several ranks on one card, memory beside the plan, a rank that dies."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from recipes import REPEATED, InBF16, InFP32, InMixed, Small, memory_cases, spread
from report import GIB, Report

from forgather_dsl import Experiment
from forgather_dsl.train.trainer import Trainer

CHECK = Path(__file__).with_name("gpu_check.py")


def fit(experiment: Experiment, out: Path, resume: str = "auto") -> list[dict[str, Any]]:
    """Train in this process (or on ranks that it launches); the records of `metrics.jsonl`."""
    with contextlib.redirect_stdout(sys.stderr):
        return Trainer(experiment, out=str(out), resume=resume).fit().metrics


def losses(records: list[dict[str, Any]]) -> list[float]:
    """Of the training steps, in order."""
    return [record["loss"] for record in records if "loss" in record]


def told(records: list[dict[str, Any]], field: str) -> Any:
    """The last value of a field."""
    return next((record[field] for record in reversed(records) if field in record), None)


def differences(a: Path, b: Path) -> tuple[int, int, float]:
    """Of the tensors in the newest checkpoints of two runs: how many, how many differ, by how much of the largest number."""
    import torch

    from forgather_dsl.train.checkpoint import open_checkpoint

    newest = [open_checkpoint(str(max((path / "checkpoints").glob("step-*")))) for path in (a, b)]
    ours, theirs = (dict(saved.tensors(saved.stored())) for saved in newest)
    if ours.keys() != theirs.keys():
        raise RuntimeError(f"{a} and {b} hold different tensors: {sorted(ours.keys() ^ theirs.keys())[:3]}")
    far = [
        float((ours[key].double() - theirs[key].double()).abs().max() / ours[key].double().abs().max().clamp(min=1e-30))
        for key in ours
        if not torch.equal(ours[key], theirs[key])
    ]
    return len(ours), len(far), max(far, default=0.0)


def child(report: Report, arguments: list[str], seconds: float, **environment: str) -> subprocess.CompletedProcess[str]:
    """This script again, in a process of its own."""
    command = [sys.executable, str(CHECK), *arguments, *(["--small"] if report.small else [])]
    return subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=seconds, check=False
    )


def formats(report: Report) -> None:
    """Losses of 20 steps in each format on the device beside fp32 on the CPU of the same machine."""
    cases = {"fp32": InFP32, "mixed": InMixed, "bf16": InBF16}
    done = child(
        report, ["--fit", "InFP32", "--steps", "20", "--out", str(report.out / "cpu")], 200, CUDA_VISIBLE_DEVICES=""
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    from forgather_dsl.runs.run import Run

    ours = losses(Run(str(report.out / "cpu")).metrics)
    for name, kind in cases.items():
        records = fit(report.sized(kind(steps=20, save_every=None)), report.out / name)
        found = losses(records)
        far = [abs(a - b) / b for a, b in zip(found, ours, strict=True)]
        steps = sorted(record["step_seconds"] for record in records if "step_seconds" in record)
        report.row(
            format=name,
            first=found[0],
            last=found[-1],
            cpu_last=ours[-1],
            first_off=far[0],
            most_off=max(far),
            ms_per_step=1e3 * steps[len(steps) // 2],
            tokens_per_second=told(records, "tokens_per_second"),
            mfu=told(records, "mfu"),
            eval_bits_per_byte=told(records, "eval_bits_per_byte"),
        )


def repeat(report: Report) -> None:
    """The same run twice, and once more from its middle: how many tensors of the last checkpoint differ."""
    for kind in REPEATED:
        _repeat(report, kind, True)
    for kind in (InFP32, InBF16):
        _repeat(report, kind, False)


def _repeat(report: Report, kind: type[Small], strict: bool) -> None:
    a, b, c = (report.out / f"{kind.__name__}-{strict}-{n}" for n in "abc")
    experiment = report.sized(kind(deterministic=strict))
    first, second = (losses(fit(experiment, place)) for place in (a, b))
    middle = a / "checkpoints" / "step-00000004"
    resumed = losses(fit(experiment, c, resume=str(middle)))
    count, off, far = differences(a, b)
    _, resumed_off, resumed_far = differences(a, c)
    report.row(
        recipe=kind.__name__,
        deterministic=strict,
        tensors=count,
        twice_differ=off,
        by=far,
        losses_differ=sum(x != y for x, y in zip(first, second, strict=True)),
        resumed_differ=resumed_off,
        resumed_by=resumed_far,
        resumed_losses_differ=sum(x != y for x, y in zip(first[4:], resumed, strict=True)),
    )


def ranks(report: Report) -> None:
    """Runs on two and four ranks that share the card, beside the single process."""
    cases = spread()
    alone = {type(single).__name__: single for _, single in cases.values()}
    for name, single in alone.items():
        fit(report.sized(single), report.out / f"alone-{name}")

    def one(name: str) -> tuple[str, subprocess.CompletedProcess[str], float]:
        start = time.perf_counter()
        done = child(report, ["--spread", name, "--out", str(report.out / name.replace(" ", "-"))], 120)
        return name, done, time.perf_counter() - start

    from forgather_dsl.runs.run import Run

    with ThreadPoolExecutor(3) as pool:
        for name, done, seconds in pool.map(one, cases):
            if done.returncode:
                report.row(case=name, failed=done.returncode, said=done.stderr[-1500:])
                continue
            place, other = report.out / name.replace(" ", "-"), report.out / f"alone-{type(cases[name][1]).__name__}"
            here, there = Run(str(place)).metrics, Run(str(other)).metrics
            count, off, far = differences(place, other)
            apart = [abs(x - y) / y for x, y in zip(losses(here), losses(there), strict=True)]
            report.row(
                case=name,
                tensors=count,
                differ=off,
                by=far,
                losses_off=max(apart),
                eval_same=told(here, "eval_loss") == told(there, "eval_loss"),
                sample_same=told(here, "sample") == told(there, "sample"),
                bubble=told(here, "bubble"),
                seconds=seconds,
            )


def memory(report: Report) -> None:
    """Peaks of one process beside the plan, and beside the real code on fake tensors."""
    import torch

    from forgather_dsl.train.session import Session

    Session.save = lambda self, wait=False: ""  # type: ignore[method-assign]  # nothing here is to be kept
    device = torch.cuda if torch.cuda.is_available() else None
    for name, experiment in memory_cases().items():
        place = report.out / name.replace(" ", "-")
        if device:
            device.reset_peak_memory_stats()
        records = fit(report.sized(experiment), place)
        [rank] = json.loads((place / "plan.json").read_text())["ranks"]
        planned = rank["peak_gib"] - rank["memory_gib"]["overhead"]
        found = {"allocated": device.max_memory_allocated(), "reserved": device.max_memory_reserved()} if device else {}
        free, total = device.mem_get_info() if device else (0, 0)
        last = [record["step_seconds"] for record in records if "step_seconds" in record][-1]
        rest = (total - free - device.memory_reserved()) / GIB if device else None
        report.row(
            case=name,
            planned=planned,
            allocated=(allocated := found.get("allocated", 0) / GIB),
            off_percent=100 * (planned / allocated - 1) if device else None,
            reserved=found.get("reserved", 0) / GIB,
            planned_with_overhead=rank["peak_gib"],
            outside_allocator=rest,
            s_per_step=last,
            mfu=told(records, "mfu"),
        )
        gc.collect()
        if device:
            device.empty_cache()


def busy(report: Report) -> None:
    """How much of a step the device computes: its kernels' time under torch's profiler over the step's without it."""
    from torch.autograd import DeviceType  # type: ignore[attr-defined]
    from torch.profiler import ProfilerActivity, profile

    from forgather_dsl.train.session import Session

    Session.save = lambda self, wait=False: ""  # type: ignore[method-assign]
    for name in ("mixed Muon",):
        experiment = report.sized(memory_cases()[name])
        records = fit(experiment, report.out / name.replace(" ", "-"))
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            fit(experiment, report.out / f"{name.replace(' ', '-')}-profiled")
        kernels = [e for e in profiler.events() or () if e.device_type == DeviceType.CUDA]
        host = sorted(profiler.key_averages(), key=lambda e: -e.self_cpu_time_total)[:10]
        device = sorted(profiler.key_averages(), key=lambda e: -e.self_device_time_total)[:8]
        steps = [record["step_seconds"] for record in records if "step_seconds" in record]
        report.row(
            case=name,
            steps=[round(second, 4) for second in steps],
            kernels_s_per_step=sum(e.self_device_time_total for e in kernels) / 1e6 / len(steps),
            kernels_per_step=len(kernels) / len(steps),
            host=[f"{e.key[:40]} {e.self_cpu_time_total / 1e3:.0f} ms, {e.count}" for e in host],
            device=[f"{e.key[:60]} {e.self_device_time_total / 1e3:.0f} ms, {e.count}" for e in device],
        )


def exactly(report: Report) -> None:
    """The same cases on fake tensors, for the table of `memory`: on any machine."""
    from forgather_dsl.train.exact import exact

    for name, experiment in memory_cases().items():
        [rank] = exact(report.sized(experiment), on_gpu=True)
        report.row(case=name, exact=rank.total / GIB, seconds=rank.seconds)
