"""Masks of attention where documents are kept apart: numbers [batch, seq, seq] that every microbatch in flight holds.

In: the specs and the layers of a stage. Out: bytes. Without documents causal attention needs no mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from ..specs import Experiment

__all__ = ["Masks"]


class Masks(NamedTuple):
    """Of one microbatch on one stage, in bytes."""

    kept: int  # from its forward to its backward: a mask for each reach of attention that the layers have
    making: int  # the most beside, while one is made of truth values

    @classmethod
    def of(cls, experiment: Experiment, layers: Iterable[int], number_bytes: int) -> Masks:
        """Those of the layers with these numbers; activations are of `number_bytes`."""
        if not experiment.isolate_documents:
            return cls(0, 0)
        places = experiment.microbatch_size * experiment.seq_len**2
        reaches = {_reach(experiment.model, layer, experiment.seq_len) for layer in layers}
        return cls(places * number_bytes * len(reaches), 2 * places)


def _reach(model: Any, layer: int, seq_len: int) -> int:
    """How far back attention sees in a layer, in tokens."""
    attention = getattr(model, "attention", None)
    choose = getattr(type(attention), "__choose__", None)  # Cycle: another part in each layer
    if choose is not None:
        attention = choose(attention, {"layer_index": layer})
    return min(seq_len, getattr(attention, "window", seq_len))
