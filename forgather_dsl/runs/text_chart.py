"""Curves in characters: a letter for each group, where its mean is; `*` where several meet."""

from __future__ import annotations

import string
from collections.abc import Sequence

from .curves import Curve

__all__ = ["LETTERS", "text_chart"]

LETTERS = string.ascii_uppercase + string.ascii_lowercase
LABEL = 9  # characters of the numbers on the left


def text_chart(curves: Sequence[Curve], names: Sequence[str], width: int = 78, height: int = 14, axis: int = 0) -> str:
    """`names` by group, `axis` 0 to 2: steps, tokens, seconds. Empty where there is nothing to draw."""
    curves = curves[: len(LETTERS)]
    points = [point for curve in curves for point in curve.points]
    if len({point.x[axis] for point in points}) < 2:
        return ""
    left, right = min(p.x[axis] for p in points), max(p.x[axis] for p in points)
    low, high = min(p.mean for p in points), max(p.mean for p in points)
    columns = max(10, width - LABEL - 2)
    cells = [[" "] * columns for _ in range(height)]
    for letter, curve in zip(LETTERS, curves):
        for column, value in _across(curve, axis, left, right, columns):
            row = round((high - value) / (high - low) * (height - 1)) if high > low else height // 2
            cells[row][column] = letter if cells[row][column] in (" ", letter) else "*"
    lines = []
    for row, line in enumerate(cells):
        value = high - (high - low) * row / (height - 1)
        label = f"{value:.4g}" if row in (0, height // 2, height - 1) else ""
        lines.append(f"{label:>{LABEL}} |{''.join(line).rstrip()}")
    lines.append(f"{'':>{LABEL}} +{'-' * columns}")
    lines.append(f"{'':>{LABEL}}  {left:<,.6g}{f'{right:,.6g}':>{columns - len(f'{left:<,.6g}')}}")
    lines += [f"{'':>{LABEL}}  {letter} {names[curve.group]}" for letter, curve in zip(LETTERS, curves)]
    return "\n".join(lines)


def _across(curve: Curve, axis: int, left: float, right: float, columns: int) -> list[tuple[int, float]]:
    """(column, value) of a curve, between its points in proportion."""
    out, points = [], curve.points
    place = 0
    for column in range(columns):
        x = left + (right - left) * column / (columns - 1)
        if not points[0].x[axis] - 1e-9 <= x <= points[-1].x[axis] + 1e-9:
            continue
        while place + 1 < len(points) - 1 and points[place + 1].x[axis] < x:
            place += 1
        a, b = points[place], points[min(place + 1, len(points) - 1)]
        span = b.x[axis] - a.x[axis]
        share = min(1.0, max(0.0, (x - a.x[axis]) / span)) if span else 0.0
        out.append((column, a.mean + share * (b.mean - a.mean)))
    return out
