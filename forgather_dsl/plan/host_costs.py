"""What the host takes for gradients, masters and optimizer state that it holds (`OnHost`): seconds, by bytes.

In: an experiment, one rank's stages, how many ranks share the host. Out: `HostSeconds`. Rates are assumed, and told with the plan:
20 GB/s each way between a card and the host (PCIe 4.0 x16 sustains 22 to 26), 40 GB/s of the host's memory for all ranks
together (two channels of DDR5), or what 16 cores compute where that is slower, as with 8-bit states. While microbatches run, gradients travel and are added beside them, so that only the slower
of both counts. The update is counted in full, though the next step's first forwards run beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..specs import Experiment
from ..specs.experiment import num_microbatches
from .memory import State
from .sizes import ModelSize, PartSize

__all__ = ["CARD_TO_HOST", "HOST_RATE", "HostSeconds", "host_seconds"]

CARD_TO_HOST = 20e9  # bytes per second, each way
HOST_RATE = 40e9  # bytes per second that an update and the adding of gradients move, all ranks of a host together
HOST_CORES = 16
CORE_SECONDS = {
    "fp32": 2e-9,
    "bf16": 20e-9,
    "8bit": 140e-9,
}  # of AdamW's update of a weight, by states (benchmarks/LOG.md)


class HostSeconds(NamedTuple):
    """Of one rank."""

    arriving: float  # while the microbatches of a step run: their gradients travel and are added
    update: float  # after it: gradients travel if they have not yet, the optimizer runs, weights travel back


def host_seconds(
    experiment: Experiment, size: ModelSize, stages: Sequence[tuple[int, range]], state: State, ranks: int
) -> HostSeconds:
    """`stages` are those of the rank, with their layers; `ranks` share the host. Nothing where the device updates."""
    if not state.on_host:
        return HostSeconds(0.0, 0.0)
    last = size_of_last(stages, size)
    parts: list[tuple[PartSize, bool]] = [(size.layers[i], True) for _, layers in stages for i in layers]
    parts += [(size.embedding, False)] * any(stage == 0 for stage, _ in stages) + [(part, False) for part in last]
    parameters = sum(part.parameters for part, _ in parts)
    rate = HOST_RATE / ranks
    held = sum(state.on_host_of(*part) for part in parts)
    sums = 4 * parameters if state.leaving else 0
    moved = 2 * (held - sums) + (4 + state.weight_bytes) * parameters
    update = max(moved / rate, CORE_SECONDS[state.states] * parameters * ranks / HOST_CORES)
    there, back = state.gradient_bytes * parameters / CARD_TO_HOST, state.weight_bytes * parameters / CARD_TO_HOST
    if not state.leaving:
        return HostSeconds(0.0, max(update, there, back))
    added = (8 + state.gradient_bytes) * parameters / rate
    return HostSeconds(num_microbatches(experiment) * max(there, added), max(update, back))


def size_of_last(stages: Sequence[tuple[int, range]], size: ModelSize) -> list[PartSize]:
    """The final norm and the head, where the last layer is; a tied head is the embedding's to update."""
    ends = any(len(size.layers) - 1 in layers for _, layers in stages)
    return [size.final_norm, *([] if size.tied else [size.head])] if ends else []
