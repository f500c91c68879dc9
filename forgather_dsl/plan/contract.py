"""A plan as JSON: what `plan --json` prints and `plan.json` keeps. Sizes in GiB, times in seconds of one step, shares of 1."""

from __future__ import annotations

from typing import Any

from ..specs import Experiment, Pipeline
from . import hardware as machines
from .advice import written
from .hardware import BANDWIDTH_SUSTAINED, FLOPS_SUSTAINED, GIB
from .host_costs import CARD_TO_HOST, HOST_RATE
from .memory import State
from .model_costs import gather, link
from .planner import Plan, Row
from .prediction import Run
from .verdicts import break_even_of, strategies_of

__all__ = ["to_dict"]


def to_dict(found: Plan, target: str | None = None) -> dict[str, Any]:
    """As JSON can hold it. Sizes in GiB, times in seconds of one step."""
    run, schedule = found.run, found.run.layout.schedule
    least, least_bubble = run.floor
    return {
        "target": target or type(run.experiment).__qualname__,
        "gpus": found.gpus,
        "schedule": _schedule_of(run.experiment),
        "fits": run.fits,
        "bubble": run.bubble,
        "step_seconds": run.step_seconds if run.times_known else None,
        "tokens_per_second": run.tokens_per_second,
        "mfu": run.mfu,
        "floor": {"step_seconds": least + run.step_seconds - run.simulation.makespan, "bubble": least_bubble},
        "microbatches": schedule.num_microbatches,
        "microbatch_size": run.experiment.microbatch_size,
        "seq_len": run.experiment.seq_len,
        "parameters": run.memory.parameters,
        "assumptions": _assumptions(found),
        "ranks": [_rank(run, rank) for rank in range(len(run.memory.ranks))],
        "comparison": [_row(row) for row in found.comparison],
        "strategies": strategies_of(found.strategies),
        "break_even": break_even_of(found.strategies),
        "choice": found.choice or None,
        "advice": list(found.options[0].lines) if found.options else [],
        "alternatives": [list(option.lines) for option in found.options[1:]],
        "notes": list(found.notes),
        "left_out": list(run.memory.left_out),
    }


def _schedule_of(experiment: Experiment) -> str:
    return written(experiment.parallel.schedule if isinstance(experiment.parallel, Pipeline) else experiment.parallel)


def _rank(run: Run, rank: int) -> dict[str, Any]:
    memory, device = run.memory.ranks[rank], run.hardware.devices[rank]
    replica, place = divmod(rank, run.layout.schedule.num_ranks)
    last, policies = len(run.layout.layers) - 1, run.layout.policies(run.experiment)
    return {
        "rank": rank,
        "replica": replica,
        "device": device.name,
        "device_gib": device.memory_bytes / GIB,
        "stages": [
            {
                "stage": stage,
                "layers": len(layers),
                "recompute": policies[stage],
                "first_layer": layers.start,
                "embedding": stage == 0,
                "head": stage == last and not run.layout.schedule.num_shards,
                "cost": sum(run.costs.seconds(kind, stage) for kind in "FIW"),
                "seconds": {kind: run.costs.seconds(kind, stage) for kind in "FIW"},
            }
            for stage, layers in memory.stages
        ],
        "head_shard": bool(run.layout.schedule.num_shards),
        "memory_gib": {kind: size / GIB for kind, size in memory.kinds().items()},
        "peak_gib": memory.total / GIB,
        "host_gib": memory.host / GIB,
        "fits": memory.total <= device.memory_bytes,
        "busy_seconds": run.simulation.busy[place],
        "bubble": run.simulation.bubble[place],
        "optimizer_seconds": run.optimizer_seconds[rank],
    }


def _row(row: Row) -> dict[str, Any]:
    run = row.run
    values = {"schedule": row.schedule, "bubble": None, "peak_gib": None, "tokens_per_second": None, "fits": False}
    if run is None:
        return {**values, "why": row.why}
    peak = max(memory.total for memory in run.memory.ranks) / GIB
    return values | {
        "bubble": run.bubble,
        "peak_gib": peak,
        "tokens_per_second": run.tokens_per_second,
        "fits": run.fits,
    }


def _assumptions(found: Plan) -> dict[str, Any]:
    """What the prediction rests on, by name."""
    run = found.run
    state = State(run.experiment, run.hardware.devices[0].kind != "host")
    speeds = [machines.speed(device, bf16=state.number_bytes == 2) for device in run.hardware.devices]
    latency, rate = link(run.hardware, found.profile)
    told: dict[str, Any] = {
        "cards": [
            f"{device.name}, taken for one {speed.card}" if speed.card not in (None, device.name) else device.name
            for device, speed in zip(run.hardware.devices, speeds)
        ],
        "tflops": [speed.flops / 1e12 for speed in speeds],
        "bandwidth_gb_per_second": [speed.bandwidth / 1e9 for speed in speeds],
        "flops_sustained": FLOPS_SUSTAINED,
        "bandwidth_sustained": BANDWIDTH_SUSTAINED,
        "link_gb_per_second": rate / 1e9,
        "latency_microseconds": latency * 1e6,
        "bytes_per_activation": state.number_bytes,
    }
    if any(device.products for device in run.hardware.devices):
        told["products_tflops_measured"] = [speed.products / 1e12 for speed in speeds]
    if any(device.copies for device in run.hardware.devices):
        told["copies_gb_per_second_measured"] = [speed.copies / 1e9 for speed in speeds]
    if run.hardware.gather is not None:
        told["gather_gb_per_second_measured"] = gather(run.hardware, found.profile) / 1e9
    if state.on_host:
        told |= {"card_to_host_gb_per_second": CARD_TO_HOST / 1e9, "host_memory_gb_per_second": HOST_RATE / 1e9}
    if found.profile is not None:
        told["seconds_measured_on"] = found.profile.device
    return told
