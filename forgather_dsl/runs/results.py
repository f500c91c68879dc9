"""What a run has achieved, as numbers: the losses it ended with, and what it took.

Losses of held-out text are those of the last evaluation, or of the one at a given step. The training loss is the mean of the
records of the last tenth of the run: a single batch says little.
"""

from __future__ import annotations

import math
import statistics
from typing import NamedTuple

from .record import Record, step_of

__all__ = ["COSTS", "TRAIN_LOSS", "Metric", "known", "metric", "value_of"]

TRAIN_LOSS = "loss"
TAIL = 0.1  # of the steps, whose mean is the training loss
GIB = 2**30


class Metric(NamedTuple):
    """A result by name."""

    name: str
    title: str
    unit: str
    lower_is_better: bool = True
    digits: int = 4


_FIXED = {
    TRAIN_LOSS: Metric(TRAIN_LOSS, "training loss", f"nats per token, mean of the last {TAIL:.0%} of the steps"),
    "tokens_per_second": Metric("tokens_per_second", "tokens/s", "median of the records after the first", False, 0),
    "step_seconds": Metric("step_seconds", "s/step", "median of the records after the first", True, 4),
    "peak_gib": Metric("peak_gib", "peak GiB", "of the rank that holds most", True, 2),
    "bubble": Metric("bubble", "bubble", "share of the step that ranks wait, median of the records", True, 3),
    "mfu": Metric("mfu", "MFU", "share of the cards' peak, median of the records", False, 3),
    "train_seconds": Metric(
        "train_seconds", "seconds", "of the steps that count, without evaluation and samples", True, 1
    ),
}
COSTS = tuple(name for name in _FIXED if name != TRAIN_LOSS)
_UNITS = {
    "eval_loss": ("held-out loss", "nats per token"),
    "eval_bits_per_byte": ("held-out bits per byte", "bits"),
    "eval_perplexity": ("held-out perplexity", ""),
    "grad_norm": ("gradient norm", ""),
    "lr": ("learning rate", ""),
}


def metric(name: str) -> Metric:
    """What a name stands for."""
    if name in _FIXED:
        return _FIXED[name]
    kind, _, place = name.partition("/")
    title, unit = _UNITS.get(kind, (kind, ""))
    return Metric(name, f"{title}, {place}" if place else title, unit)


def known(records: list[Record]) -> list[str]:
    """Names of the results that any of the runs has: held-out ones first, then the training loss and what it took."""
    held_out = dict.fromkeys(name for record in records for name in record.evaluated)
    return [*held_out, *(name for name in _FIXED if any(value_of(record, name) is not None for record in records))]


def value_of(record: Record, name: str, step: int | None = None) -> float | None:
    """A result of a run, at its end or at a step; None where it has none. Not finite where the run diverged."""
    if name == TRAIN_LOSS:
        return _train_loss(record, step)
    if name not in _FIXED:
        found = record.series(name)
        if step is None:
            return found[-1][1] if found else None
        return dict(found).get(step)
    if name == "peak_gib":
        return max(peaks) / GIB if (peaks := memory(record)) else None
    if name == "train_seconds":
        return (record.clock[-1][2] if step is None else record.at(step)[1]) if record.clock else None
    return _median(record, name)


def memory(record: Record) -> list[float]:
    """The most bytes that each rank has held."""
    rows = [r.get("peak_memory_bytes") for r in record.steps]
    rows = [row for row in rows if isinstance(row, list) and row and all(isinstance(n, (int, float)) for n in row)]
    return [max(column) for column in zip(*rows)] if rows else []


def bubbles(record: Record) -> list[float]:
    """The measured bubble of each rank: the median of the records after the first."""
    rows = [r.get("bubbles") for r in record.steps]
    rows = [row for row in rows if isinstance(row, list) and row and all(isinstance(n, (int, float)) for n in row)]
    return [statistics.median(column) for column in zip(*(rows[1:] or rows))] if rows else []


def _median(record: Record, name: str) -> float | None:
    found = [value for _, value in record.series(name) if math.isfinite(value)]
    return statistics.median(found[1:] or found) if found else None  # the first record holds the warm-up


def _train_loss(record: Record, step: int | None) -> float | None:
    found = record.series(TRAIN_LOSS)
    last = max(map(step_of, record.steps), default=0) if step is None else step
    if step is not None and (not found or found[-1][0] < step):
        return None
    tail = [value for at, value in found if last * (1 - TAIL) < at <= last]
    return math.fsum(tail) / len(tail) if tail else None
