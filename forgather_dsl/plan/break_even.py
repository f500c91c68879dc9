"""From which link speed, and from how many tokens a pass, sharded weights (`FSDP2`) are as fast as a pipeline.

In: the `Run` of each. Out: `BreakEven`. A pipeline's step takes its compute times a bubble factor, (M + N - 1) / M for M
microbatches on N even stages under 1F1B; with a perfect overlap FSDP2's takes the longer of compute and communication. So the
pipeline wins where rho, communication over compute, exceeds the bubble factor. Communication goes with 1 / link and does
not grow with the tokens of a pass, compute does: the model's size cancels.
"""

from __future__ import annotations

from typing import NamedTuple

from ..specs.experiment import num_replicas
from .prediction import Run

__all__ = ["BreakEven", "bounds", "break_even", "compute_seconds", "even_factor", "tokens_per_pass"]


class BreakEven(NamedTuple):
    """Rates in bytes per second, of the link that a rank's collectives run over; None: at no speed."""

    rho: float  # communication over compute of the sharded run
    bubble_factor: float  # of the pipeline: its step over the sharded run's compute
    link_perfect: float | None  # from here on the sharded run is as fast, its communication hidden as far as can be,
    link_none: float | None  # or not hidden at all
    tokens_per_pass: int  # of the sharded run, over all ranks: forward and backward of one microbatch on each
    tokens_perfect: (
        float | None
    )  # from so many on it is as fast at this link, its communication hidden as far as can be
    pipeline_wins: bool  # even then


def even_factor(ranks: int, microbatches: int) -> float:
    """The bubble factor of GPipe and 1F1B on stages alike, messages taking no time (arXiv 1811.06965)."""
    return (microbatches + ranks - 1) / microbatches


def compute_seconds(run: Run) -> float:
    """Of the rank that computes most, in a step, without the optimizer."""
    return max(run.simulation.busy)


def bounds(run: Run) -> tuple[float, float]:
    """Seconds of a step with perfect overlap, and with none; the same for what sends only in its simulated time."""
    if run.traffic is None:
        return run.step_seconds, run.step_seconds
    without = run.step_seconds + run.traffic.hidden
    return without - run.traffic.hideable, without


def tokens_per_pass(run: Run) -> int:
    """Tokens that all ranks together take through the model between two gathers of a weight."""
    e = run.experiment
    return num_replicas(e) * e.microbatch_size * e.seq_len


def break_even(sharded: Run, pipeline: Run) -> BreakEven | None:
    """None where the sharded run sends nothing or nothing is known of the arithmetic."""
    traffic, compute = sharded.traffic, compute_seconds(sharded)
    if traffic is None or not traffic.seconds or not compute or not (sharded.times_known and pipeline.times_known):
        return None
    beside = bounds(sharded)[1] - compute - traffic.seconds  # the optimizer's
    allowed = pipeline.step_seconds - beside  # for compute and communication together, to be as fast
    in_the_open, hidden_too = allowed - compute, allowed - compute + traffic.window
    scale = traffic.bytes / traffic.seconds  # with what hops take
    return BreakEven(
        rho=traffic.seconds / compute,
        bubble_factor=allowed / compute,
        link_perfect=scale * traffic.seconds / hidden_too if in_the_open > 0 else None,
        link_none=scale * traffic.seconds / in_the_open if in_the_open > 0 else None,
        tokens_per_pass=tokens_per_pass(sharded),
        tokens_perfect=tokens_per_pass(sharded) * traffic.seconds / hidden_too if in_the_open > 0 else None,
        pipeline_wins=in_the_open <= 0 or traffic.seconds > hidden_too,
    )
