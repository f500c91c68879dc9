"""What one microbatch costs on each stage of a pipeline, and what ranks and links allow: what searches and simulations take.

In: an experiment, where its stages are and which layers they have. Out: `Costs`: seconds of F, I and W, bytes held from F
to I and from I to W, bytes left on each rank. Modelled from floating point operations; a matrix product costs the same
forward, for the input gradient and for the weight gradient, attention twice as much backward and nothing in W.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Costs", "uniform", "with_shards", "without_shards"]


@dataclass(frozen=True)
class Costs:
    """Costs of one microbatch, a number per stage; `capacity` is per rank."""

    forward: tuple[float, ...]
    """Seconds of F, per stage (any unit, if it is one unit throughout)."""
    input_grad: tuple[float, ...]
    """Seconds of I; a full backward B takes `input_grad + weight_grad`. Includes recomputing."""
    weight_grad: tuple[float, ...]
    """Seconds of W."""
    kept: tuple[float, ...]
    """Bytes that a microbatch holds from the start of F to the end of B or I."""
    owed: tuple[float, ...]
    """Bytes that a microbatch holds from the end of I to the end of W."""
    working: tuple[float, ...]
    """Bytes needed on top while F, B or I runs."""
    capacity: tuple[float, ...]
    """Bytes that a rank has for the three above: its card less weights, gradients, optimizer state, buffers, context."""
    latency: float = 0.0
    """Seconds from the end of a send to the arrival of a message between two ranks."""
    transfer: float = 0.0
    """Seconds that one message occupies the link between two ranks, in its direction; messages queue."""
    splitting: tuple[float, ...] = ()
    """Bytes needed on top while I runs, what it comes to owe included; empty: as `working`."""

    @property
    def num_stages(self) -> int:
        """Stages over all ranks."""
        return len(self.forward)

    def seconds(self, kind: str, stage: int) -> float:
        """How long an action of `kind` F, B, I or W takes on a stage."""
        if kind == "B":
            return self.input_grad[stage] + self.weight_grad[stage]
        return {"F": self.forward, "I": self.input_grad, "W": self.weight_grad}[kind][stage]

    def during(self, kind: str, stage: int) -> float:
        """Bytes needed on top while an action of `kind` runs."""
        if kind == "W":
            return 0.0
        return self.splitting[stage] if kind == "I" and self.splitting else self.working[stage]


def uniform(
    num_stages: int,
    ranks: int,
    forward: float = 1.0,
    input_grad: float = 1.0,
    weight_grad: float = 1.0,
    memory_cap: float = float("inf"),
    latency: float = 0.0,
    transfer: float = 0.0,
) -> Costs:
    """The same for every stage; `memory_cap` in microbatches of all stages of a rank, held from F to W."""

    def each(value: float) -> tuple[float, ...]:
        return (value,) * num_stages

    unit = ranks / num_stages  # of a rank's layers in one stage
    return Costs(
        each(forward), each(input_grad), each(weight_grad), each(unit), each(unit), each(0.0),
        (memory_cap,) * ranks, latency, transfer,
    )  # fmt: skip


def with_shards(costs: Costs, forward: float, weight_grad: float, kept: float = 0.0, working: float = 0.0) -> Costs:
    """`costs` of stages without a head, and of one shard of the head for each rank: seconds of its F, which contains the
    gradient for hidden states, and of its W; bytes from F to W, and on top while F runs.
    """

    def and_each(values: tuple[float, ...], value: float) -> tuple[float, ...]:
        return (*values, *(value,) * len(costs.capacity))

    return replace(
        costs,
        forward=and_each(costs.forward, forward),
        input_grad=and_each(costs.input_grad, 0.0),
        weight_grad=and_each(costs.weight_grad, weight_grad),
        kept=and_each(costs.kept, kept),
        owed=and_each(costs.owed, kept),  # no I in between: F takes `kept`, W gives back `owed`
        working=and_each(costs.working, working),
        splitting=and_each(costs.splitting or costs.working, 0.0),
    )


def without_shards(costs: Costs, num_stages: int) -> Costs:
    """The costs of the first `num_stages` stages: those that hold layers."""
    names = ("forward", "input_grad", "weight_grad", "kept", "owed", "working", "splitting")
    return replace(costs, **{name: getattr(costs, name)[:num_stages] for name in names})
