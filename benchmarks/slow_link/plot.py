"""The plot: seconds per step over the link's speed, on logarithmic scales, as SVG that needs nothing to be shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from slow_link.page import Line, lines

__all__ = ["svg"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 64, 190, 44, 78
SERIES = {  # name: label, colour, dashes
    "FSDP2 as shipped": ("FSDP2 as shipped", "#b0522d", "2 3"),
    "FSDP2 tuned": ("FSDP2, tuned", "#c1272d", ""),
    "FSDP, perfect overlap": ("FSDP, perfect overlap", "#c1272d", "7 4"),
    "DDP": ("DDP", "#7a6a00", ""),
    "FSDP2 tuned, weights kept": ("FSDP2, weights kept", "#7b3fa0", ""),
    "1F1B": ("1F1B", "#5a8fbf", ""),
    "best": ("our best pipeline", "#0b4f8a", ""),
}
GAP = 15.0  # between labels


def svg(rows: Sequence[dict[str, Any]]) -> str:
    """The picture. At each measured rho one place on the x axis, in order."""
    found = lines(rows)
    values = {name: [_value(line, name) for line in found] for name in SERIES}
    every = [v for series in values.values() for v in series if v is not None]
    low, high = min(every) * 0.85, max(every) * 1.15
    xs = [LEFT + (WIDTH - LEFT - RIGHT) * i / max(1, len(found) - 1) for i in range(len(found))]

    def y(value: float) -> float:
        share = (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [_axes(found, xs, y, low, high)]
    ends: list[tuple[float, str, str]] = []
    for name, (label, colour, dashes) in SERIES.items():
        points = [(x, y(v)) for x, v in zip(xs, values[name]) if v is not None]
        if not points:
            continue
        width = 3 if name == "best" else 1.8
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'
        )
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{width}" fill="{colour}"/>' for a, b in points]
        ends.append((points[-1][1], f"{label} {values[name][-1]:.1f} s", colour))
    parts += _labels(ends)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>', *parts, "</svg>", ""])


def _value(line: Line, name: str) -> float | None:
    return line.best if name == "best" else line.seconds.get(name, line.bounds.get(name))


def _axes(found: Sequence[Line], xs: Sequence[float], y: Any, low: float, high: float) -> str:
    bottom = HEIGHT - BOTTOM
    parts = [f'<text x="{LEFT}" y="24" font-size="14" fill="#222">Seconds per step, four emulated GPUs</text>']
    for tick in (t for t in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 30, 50) if low <= t <= high):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end" fill="#444">{tick:g}</text>')
    for line, x in zip(found, xs):
        rate = "no limit" if line.rate is None else f"{line.rate / 1e6:.0f} Mb/s"
        parts.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle" fill="#444">{line.rho:g}</text>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 34}" text-anchor="middle" fill="#777" font-size="11">{rate}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
        f'<text x="{middle}" y="{HEIGHT - 16}" text-anchor="middle" fill="#222">FSDP\'s communication over its computing '
        "(below: the emulated link)</text>"
    )
    return "\n".join(parts)


def _labels(ends: list[tuple[float, str, str]]) -> list[str]:
    """At the last points, moved apart where they would lie on one another."""
    out, last = [], -math.inf
    for place, text, colour in sorted(ends):
        last = max(place + 4, last + GAP)
        out.append(f'<text x="{WIDTH - RIGHT + 10}" y="{last:.1f}" fill="{colour}">{text}</text>')
    return out
