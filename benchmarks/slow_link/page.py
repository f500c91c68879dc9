"""From measured rows to what people read: the short table of the README, the full tables, and ratios that are checked.

In: what `measure` returned for each rho and mode. Out: markdown. The bound beside FSDP is computed from the same run: the
larger of what computing took (in the mode where it took least) and what FSDP's counted bytes take on the link, as if the
smaller could hide behind the larger whole.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from slow_link.theory import RHOS, TOLERANCE, least_seconds, within

__all__ = ["OURS", "TARGETS", "Line", "full_tables", "lines", "missed", "short_table", "wrong_bytes"]

OURS = ("1F1B", "Interleaved", "ZeroBubbleV", "ZeroBubble")
BOUNDED = {"FSDP2 tuned": "FSDP, perfect overlap", "FSDP2 tuned, weights kept": "FSDP keeping weights, perfect overlap"}
TARGETS = {1.83: 1.5, 3.66: 2.9, 10.0: 8.0}  # our best pipeline over FSDP with perfect overlap, by rho


@dataclass(frozen=True)
class Line:
    """What was found at one rho: median seconds of a step by mode, and the bounds."""

    rho: float
    rate: float | None
    seconds: dict[str, float]
    bounds: dict[str, float]

    @property
    def best(self) -> float:
        """Of our pipelines."""
        return min(self.seconds[mode] for mode in OURS if mode in self.seconds)

    def over(self, name: str) -> float | None:
        """How many of our steps fit into one of `name`'s, a mode or a bound; None when that was not measured."""
        other = self.seconds.get(name, self.bounds.get(name))
        return None if other is None else other / self.best


def lines(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """One for each rho, in order."""
    found = []
    for rho in dict.fromkeys(row["rho"] for row in rows):
        mine = {row["mode"]: row for row in rows if row["rho"] == rho}
        computing = min(statistics.median(row["computing"]) for row in mine.values())
        bounds = {
            BOUNDED[mode]: least_seconds(computing, max(row["sent"]), row["rate"])
            for mode, row in mine.items()
            if mode in BOUNDED
        }
        seconds = {mode: statistics.median(row["seconds"]) for mode, row in mine.items()}
        found.append(Line(rho, next(iter(mine.values()))["rate"], seconds, bounds))
    return found


def missed(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Targets that were not met, in words."""
    found = []
    for line in lines(rows):
        ratio, target = line.over("FSDP, perfect overlap"), TARGETS.get(line.rho)
        if ratio is not None and target is not None and ratio < target:
            found.append(f"rho {line.rho:g}: {ratio:.2f}x of FSDP with perfect overlap, the target is {target:g}x")
    return found


def wrong_bytes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Modes whose ranks did not send what the formula says, to 2 %, in words."""
    return [
        f"rho {row['rho']:g}, {row['mode']}, rank {rank}: {payload:.0f} bytes instead of {expected:.0f}"
        for row in rows
        for rank, (payload, expected) in enumerate(zip(row["payload"], row["expected"]))
        if not within(payload, expected)
    ]


def _link(rate: float | None) -> str:
    return "unlimited" if rate is None else f"{rate / 1e6:.1f} Mb/s"


def short_table(rows: Sequence[dict[str, Any]]) -> str:
    """For the README: seconds per step of FSDP, DDP and ours, and how many times faster ours is."""
    heads = ["FSDP's communication / computing (comparable link)", "FSDP2, tuned", "FSDP, perfect overlap", "DDP"]
    heads += [
        "1F1B",
        "Interleaved",
        "ZB-V",
        "searched",
        "our best is faster than perfect FSDP",
        "than tuned FSDP2",
        "than DDP",
    ]
    body = []
    for line in lines(rows):
        names = ("FSDP2 tuned", "FSDP, perfect overlap", "DDP", *OURS)
        times = [line.seconds.get(name, line.bounds.get(name)) for name in names]
        ratios = [line.over(name) for name in ("FSDP, perfect overlap", "FSDP2 tuned", "DDP")]
        name = f"{line.rho:g} ({RHOS.get(line.rho, _link(line.rate))})"
        body.append([name, *(_number(t, "") for t in times), *(_number(r, "x") for r in ratios)])
    return _markdown(heads, body)


def full_tables(rows: Sequence[dict[str, Any]]) -> str:
    """Every mode: seconds with quartiles, and the bytes that each rank sent beside the formula."""
    modes = list(dict.fromkeys(row["mode"] for row in rows))
    by = {(row["rho"], row["mode"]): row for row in rows}
    rhos = list(dict.fromkeys(row["rho"] for row in rows))
    found = {line.rho: line for line in lines(rows)}
    heads = ["mode", *(f"rho {rho:g}, {_link(found[rho].rate)}" for rho in rhos)]
    body = [[mode, *(_spread(by[rho, mode]["seconds"]) for rho in rhos)] for mode in modes]
    body += [[name, *(f"{found[rho].bounds[name]:.3f}" for rho in rhos)] for name in found[rhos[0]].bounds]
    compared = [*found[rhos[0]].bounds, *(mode for mode in modes if mode not in OURS)]
    ratios = [[f"{name} / our best", *(_number(found[rho].over(name), "x") for rho in rhos)] for name in compared]
    sent = []
    for mode in modes:
        mine = [row for row in rows if row["mode"] == mode]
        off = max((p / e - 1 for row in mine for p, e in zip(row["payload"], row["expected"])), key=abs)
        formula = _range(mine[-1]["expected"])
        sent.append([mode, formula, _range(mine[-1]["payload"]), _range(mine[-1]["sent"]), f"{100 * off:+.2f} %"])
    bytes_heads = ["mode", "formula", "counted", "with headers", "largest difference, all ranks and links"]
    return "\n\n".join(
        [
            "Seconds per step, median [quartiles]:",
            _markdown(heads, body),
            "How many steps of our best pipeline fit into one:",
            _markdown(["", *heads[1:]], ratios),
            f"MB that a rank sends in a step (a range over ranks where they differ), beside the formula; bound {TOLERANCE:.0%}:",
            _markdown(bytes_heads, sent),
        ]
    )


def _number(value: float | None, unit: str) -> str:
    return "-" if value is None else f"{value:.2f}{unit}"


def _range(values: Sequence[float]) -> str:
    low, high = min(values) / 1e6, max(values) / 1e6
    return f"{low:.3f}" if f"{low:.3f}" == f"{high:.3f}" else f"{low:.3f} to {high:.3f}"


def _spread(values: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return f"{middle:.3f} [{low:.3f}-{high:.3f}]"


def _markdown(heads: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *body))
