"""Curves and intervals as pictures (SVG): no library, nothing to load, readable without scripts.

A line carries its axes as `data-` attributes, from which the page's script reads values under the pointer. Colours are classes
(`s0`, `s1`, ... of the page), so they follow the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from .curves import AXES, Curve
from .scale import Scale, fitted, told
from .verdicts import Verdict

__all__ = ["COLORS", "color_of", "forest", "line_chart"]

WIDTH, HEIGHT = 760, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 40  # pixels around the curves
COLORS = 10
DASHES = ("", "6 3", "2 3", "8 3 2 3")  # from the eleventh series on the colours come again, in dashes
ROW = 26  # pixels of a group among the intervals
NAMES, VALUES = 190, 130  # pixels for names and numbers beside them


def line_chart(
    curves: Sequence[Curve], names: Sequence[str], base: int, axis: int, *, log: bool, title: str, look: str
) -> str:
    """Curves over steps, tokens or seconds (`axis` 0 to 2); `log`: both axes. Empty where nothing can be drawn."""
    points = [(p, p.x[axis]) for curve in curves for p in curve.points if p.x[axis] > 0 or not log]
    if log:
        points = [(p, x) for p, x in points if p.mean > 0]
    across = fitted((x for _, x in points), LEFT, WIDTH - RIGHT, log=log, margin=0.01)
    values = [v for p, _ in points for v in (p.low, p.mean, p.high)]
    up = fitted(values, HEIGHT - BOTTOM, TOP, log=log)
    if across is None or up is None or len({x for _, x in points}) < 2:
        return ""
    label = f"{title} over {AXES[axis]}" + (", logarithmic" if log else "")
    axes = f'data-x="{across.low!r} {across.high!r}" data-y="{up.low!r} {up.high!r}" data-log="{int(log)}"'
    frame = f'data-frame="{LEFT} {WIDTH - RIGHT} {HEIGHT - BOTTOM} {TOP}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart {look}" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(label)}" {axes} {frame}>',
        *_grid(across, up),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 6}">{AXES[axis]}</text>',
    ]
    for curve in curves:
        out += _series(curve, names[curve.group], base, axis, across, up)
    return "\n".join([*out, "</svg>"])


def color_of(group: int, base: int) -> tuple[str, str]:
    """The class of a group's colour, and its dashes; the base has the ink's."""
    if group == base:
        return "sb", ""
    place = group - (group > base)
    return f"s{place % COLORS}", DASHES[place // COLORS % len(DASHES)]


def _grid(across: Scale, up: Scale) -> Iterator[str]:
    for value in up.ticks():
        y = up(value)
        yield f'<path class="rule" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
        yield f'<text class="tick end" x="{LEFT - 6}" y="{y + 4:.1f}">{told(value)}</text>'
    for value in across.ticks():
        x = across(value)
        yield f'<path class="rule" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
        yield f'<text class="tick mid" x="{x:.1f}" y="{HEIGHT - BOTTOM + 15}">{told(value)}</text>'


def _series(curve: Curve, name: str, base: int, axis: int, across: Scale, up: Scale) -> Iterator[str]:
    there = [p for p in curve.points if not across.log or (p.x[axis] > 0 and p.mean > 0)]
    if not there:
        return
    color, dash = color_of(curve.group, base)
    yield f'<g class="{color} g{curve.group}"><title>{escape(name)}</title>'
    if curve.runs > 1:
        edge = [(p.x[axis], p.high) for p in there] + [(p.x[axis], p.low) for p in reversed(there)]
        corners = " ".join(f"{across(x):.1f},{up(max(v, up.low)):.1f}" for x, v in edge)
        yield f'<polygon class="band" points="{corners}"/>'
    line = " ".join(f"{across(p.x[axis]):.2f},{up(p.mean):.2f}" for p in there)
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    yield f'<polyline class="line" points="{line}"{dashed}/>'
    last = there[-1]
    yield f'<circle class="dot" cx="{across(last.x[axis]):.1f}" cy="{up(last.mean):.1f}" r="2.6"/></g>'


def forest(
    names: Sequence[str], verdicts: Sequence[Verdict | None], order: Sequence[int], digits: int, title: str
) -> str:
    """Each group's difference to the base with its interval, around a line at zero. Empty where there is no interval."""
    rows = [(i, v, v.difference) for i in order if (v := verdicts[i]) and v.difference and v.difference.low is not None]
    edges = [e for _, _, d in rows for e in (d.low, d.high, 0.0) if e is not None]
    across = fitted(edges, NAMES, WIDTH - VALUES, log=False)
    if not rows or across is None:
        return ""
    height = len(rows) * ROW + 44
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart forest" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}">'
    ]
    for value in across.ticks():
        out.append(f'<path class="rule" d="M{across(value):.1f} 4V{height - 32}"/>')
        out.append(
            f'<text class="tick mid" x="{across(value):.1f}" y="{height - 18}">{f"{value:+.4g}" if value else "0"}</text>'
        )
    out.append(f'<path class="zero" d="M{across(0):.1f} 4V{height - 32}"/>')
    out.append(f'<text class="axis" x="{(NAMES + WIDTH - VALUES) / 2}" y="{height - 3}">{escape(title)}</text>')
    for position, (index, verdict, change) in enumerate(rows):
        y = 4 + ROW * (position + 0.5)
        assert change.low is not None
        assert change.high is not None
        name = names[index] if len(names[index]) <= 28 else names[index][:27] + "…"
        out.append(f'<g class="v {verdict.kind}"><title>{escape(names[index])}: {escape(verdict.text)}</title>')
        out.append(f'<text class="name end" x="{NAMES - 12}" y="{y + 4}">{escape(name)}</text>')
        out.append(f'<path class="whisker" d="M{across(change.low):.1f} {y}H{across(change.high):.1f}"/>')
        out.append(f'<circle class="dot" cx="{across(change.value):.1f}" cy="{y}" r="4.5"/>')
        out.append(f'<text class="name" x="{WIDTH - VALUES + 12}" y="{y + 4}">{change.value:+.{digits}f}</text></g>')
    return "\n".join([*out, "</svg>"])
