"""Strategies side by side, as JSON: what each costs, and a verdict in words; and where pipelines and sharded weights break even.

In: rows of `strategies`. Out: what `plan --json` has under `strategies` and `break_even`. Seconds are of a step, bytes of the rank
that sends most; `rho` is communication over compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..specs import FSDP2, Experiment, Pipeline
from ..specs.experiment import num_replicas
from .advice import written
from .break_even import bounds, break_even, compute_seconds, tokens_per_pass
from .hardware import GIB
from .memory import State
from .model_costs import gather, link
from .prediction import Run
from .resident import message_bytes
from .strategies import Strategy, best, over
from .traffic import Traffic, passed_on

__all__ = ["break_even_of", "strategies_of"]


def strategies_of(rows: Sequence[Strategy]) -> list[dict[str, Any]]:
    """As JSON can hold it."""
    winner = best(rows)
    piped = best([row for row in rows if isinstance(row.experiment.parallel, Pipeline)])
    return [_row(row) | {"verdict": _verdict(row, winner, piped)} for row in rows]


def _row(row: Strategy) -> dict[str, Any]:
    told: dict[str, Any] = {
        "parallel": written(row.experiment.parallel),
        "family": row.family,
        "lines": list(row.lines),
        "microbatch_size": row.experiment.microbatch_size,
        "this": row.own,
        "fits": row.fits,
    }
    run = row.run
    if run is None:
        names = ("peak_gib", "tokens_per_second", "tokens_per_second_none", "tokens_per_second_perfect")
        names += ("compute_seconds", "communication_seconds", "bytes", "rho", "bubble_factor", "tokens_per_pass")
        return told | dict.fromkeys(names)
    sent, compute = _traffic(run), compute_seconds(run)
    tokens, (perfect, none) = row.experiment.batch_size * row.experiment.seq_len, bounds(run)
    mean = sum(run.simulation.busy) / len(run.simulation.busy)
    known = run.times_known and compute > 0
    return told | {
        "peak_gib": max(memory.total for memory in run.memory.ranks) / GIB,
        "tokens_per_second": run.tokens_per_second,
        "tokens_per_second_none": tokens / none if known else None,
        "tokens_per_second_perfect": tokens / perfect if known else None,
        "compute_seconds": compute if known else None,
        "communication_seconds": sent.seconds,
        "bytes": sent.bytes,
        "rho": sent.seconds / compute if known else None,
        "bubble_factor": run.simulation.makespan / mean if known and run.layout.schedule.num_ranks > 1 else None,
        "tokens_per_pass": tokens_per_pass(run),
    }


def _traffic(run: Run) -> Traffic:
    """Of the rank that sends most: what it shares the batch with others for, or what its pipeline passes on."""
    if run.traffic is not None:
        return run.traffic
    experiment, on_gpu = run.experiment, run.hardware.devices[0].kind != "host"
    state = State(experiment, on_gpu)
    size = state.size_of(experiment)
    message = message_bytes(experiment, size, state)
    passed, copies = passed_on(run.layout.schedule, message, link(run.hardware)[1]), num_replicas(experiment)
    added = 2 * (copies - 1) / copies * max(rank.gradients for rank in run.memory.ranks)
    return Traffic(passed.bytes + added, passed.seconds + added / gather(run.hardware))


def _verdict(row: Strategy, winner: Strategy | None, piped: Strategy | None) -> str:
    run = row.run
    if run is None:
        return f"not possible: {row.why}"
    if not row.fits:
        rank, device = max(
            zip(run.memory.ranks, run.hardware.devices), key=lambda pair: pair[0].total / pair[1].memory_bytes
        )
        if over(row) <= 1:
            return "does not fit: the ranks together need more than the host has"
        return f"does not fit: rank {rank.rank} needs {rank.total / GIB:.1f} of {device.memory_bytes / GIB:.1f} GiB"
    if winner is None or not run.times_known or row is winner:
        return "the fastest that fits" if row is winner and run.times_known else "fits"
    slower = f"{row.seconds / winner.seconds:.2f}x slower"
    if run.traffic is None or piped is None or piped.run is None or row.seconds <= piped.seconds:
        return slower
    even = break_even(run, piped.run)
    if even is None:
        return slower
    if even.link_perfect is None:
        return f"{slower}: no link would make it as fast as the pipeline"
    if even.pipeline_wins:
        return f"{slower}: sends for {even.rho:.2f} of its compute, a pipeline waits for {even.bubble_factor - 1:.2f}"
    return f"{slower}, though as fast as the pipeline if all it sends were hidden"


def break_even_of(rows: Sequence[Strategy]) -> dict[str, Any] | None:
    """Between the best pipeline and the best `FSDP2`, those that fit first; None where one of them is missing."""
    piped = _nearest([row for row in rows if isinstance(row.experiment.parallel, Pipeline)])
    sharded = _nearest([row for row in rows if isinstance(row.experiment.parallel, FSDP2)])
    if piped is None or sharded is None or piped.run is None or sharded.run is None:
        return None
    even = break_even(sharded.run, piped.run)
    if even is None or sharded.run.traffic is None:
        return None
    return {
        "sharded": written(sharded.experiment.parallel),
        "sharded_fits": sharded.fits,
        "pipeline": written(piped.experiment.parallel),
        "pipeline_fits": piped.fits,
        "rho": even.rho,
        "bubble_factor": even.bubble_factor,
        "pipeline_wins": even.pipeline_wins,
        "sharded_faster_by_plan": sharded.seconds < piped.seconds,
        "hidden": sharded.run.traffic.hidden / sharded.run.traffic.seconds,
        "link_gb_per_second": gather(sharded.run.hardware) / 1e9,
        "link_gb_per_second_perfect": None if even.link_perfect is None else even.link_perfect / 1e9,
        "link_gb_per_second_none": None if even.link_none is None else even.link_none / 1e9,
        "tokens_per_pass": even.tokens_per_pass,
        "tokens_per_pass_perfect": even.tokens_perfect,
        "link_said": _said(sharded.experiment),
    }


def _nearest(rows: Sequence[Strategy]) -> Strategy | None:
    possible = [row for row in rows if row.run is not None]
    return best(rows) or min(possible, key=over, default=None)


def _said(experiment: Experiment) -> bool:
    """Whether the link's speed is in `hardware` and not assumed."""
    return any(part.strip().startswith(("link", "gather")) for part in experiment.hardware.split(",")[1:])
