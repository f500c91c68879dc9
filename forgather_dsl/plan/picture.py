"""A schedule as a picture (SVG): a lane per rank with a box per action, the memory of its microbatches below, a time axis.

In: a `Schedule`, its simulation, the costs that it was simulated with. Out: SVG text that needs nothing else; colours follow
the reader's light or dark setting. Colour says the kind of action, its depth which of the rank's stages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.sax.saxutils import escape

from .actions import Action, Schedule
from .costs import Costs
from .drawing import NAMES, letter_of, letters_of
from .hardware import GIB
from .simulate import Interval, Simulation

__all__ = ["STYLE", "svg"]

LEFT, RIGHT, TOP = 64, 150, 58  # pixels around the lanes: names, bubble and peak, title and legend
LANE, CURVE, GAP = 34, 30, 18  # heights: boxes, memory, between ranks
NARROWEST, WIDEST = 900, 5200  # pixels of all lanes
DIGIT = 6.2  # pixels of a digit in a box
SHORTEST = 15  # pixels of the shortest action, enough for two digits
REACH = 2.0  # a rank's room is drawn when it is less than so many times the most that any rank holds
STAGES_DRAWN = 4  # depths of colour; further stages of a rank repeat the last

_LIGHT = {
    "F": ("#8fb8f0", "#4f86d9", "#2f62b3", "#1d4586"),
    "B": ("#8fd0a0", "#4cab68", "#2f8249", "#1c5c31"),
    "I": ("#7fd1cc", "#3aa8a1", "#1f7f79", "#125a55"),
    "W": ("#f2c879", "#dc9f34", "#b07a18", "#805606"),
    "H": ("#c3a5ee",),
    "h": ("#e6b3d6",),
}
_DARK = {
    "F": ("#5b8fd6", "#3c6bb0", "#2b4f88", "#1f3a66"),
    "B": ("#57a872", "#3b8355", "#2a613e", "#1d472d"),
    "I": ("#46a39d", "#2f7f7a", "#22605c", "#194845"),
    "W": ("#cf9f45", "#a67b2b", "#7f5d1d", "#5d4413"),
    "H": ("#8f6fc4",),
    "h": ("#b0739d",),
}


def _rules(colors: dict[str, tuple[str, ...]], dark: bool) -> str:
    light_text, dark_text = ("#f4f6f8", "#0d1117") if dark else ("#ffffff", "#10202f")
    rules = []
    for kind, shades in colors.items():
        for depth, shade in enumerate(shades):
            rules.append(f".fg .{kind}{depth}{{fill:{shade}}}")
            rules.append(f".fg .t{kind}{depth}{{fill:{dark_text if depth == 0 else light_text}}}")
    ground, ink, faint, lane, curve = (
        ("#0d1117", "#e6edf3", "#8b949e", "#1b222c", "#8b949e")
        if dark
        else ("#ffffff", "#1f2328", "#6a737d", "#eef1f4", "#9aa4ae")
    )
    rules += [
        f".fg .ground{{fill:{ground}}}",
        f".fg text{{fill:{ink}}}",
        f".fg .faint{{fill:{faint}}}",
        f".fg .lane{{fill:{lane}}}",
        f".fg .rule{{stroke:{faint};stroke-opacity:.28}}",
        f".fg .curve{{fill:{curve};fill-opacity:.38;stroke:{curve};stroke-width:1}}",
        f".fg .limit{{stroke:{'#ff7b72' if dark else '#cf222e'};stroke-dasharray:4 3;fill:none}}",
    ]
    return "".join(rules)


STYLE = (
    ".fg{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif}"
    ".fg .n{font-size:10.5px;text-anchor:middle;dominant-baseline:central;font-variant-numeric:tabular-nums}"
    ".fg .title{font-size:15px;font-weight:600}.fg .axis{font-size:11px;text-anchor:middle}"
    ".fg .mid{dominant-baseline:central}"
    + _rules(_LIGHT, dark=False)
    + f"@media(prefers-color-scheme:dark){{{_rules(_DARK, dark=True)}}}"
)


def svg(schedule: Schedule, result: Simulation, costs: Costs, title: str, *, with_style: bool = True) -> str:
    """The picture. `with_style=False` for a page that has `STYLE` already."""
    shortest = min((i.end - i.start for line in result.timeline for i in line if i.end > i.start), default=1.0)
    inner = min(WIDEST, max(NARROWEST, round(SHORTEST * result.makespan / shortest)))
    scale = inner / result.makespan if result.makespan else 0.0
    step = LANE + CURVE + GAP
    height = TOP + schedule.num_ranks * step + 34
    width = LEFT + inner + RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="fg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">',
        f"<style>{STYLE}</style>" if with_style else "",
        f'<rect class="ground" width="{width}" height="{height}"/>',
        f'<text class="title" x="{LEFT}" y="20">{escape(title)}</text>',
        *_legend(schedule),
        *_axis(result.makespan, scale, height - 34),
    ]
    tallest = max(max(result.peak_bytes), 1.0)
    tallest = max([tallest, *(room for room in costs.capacity if room < REACH * tallest)])
    for rank, line in enumerate(result.timeline):
        y = TOP + rank * step
        out.append(f'<rect class="lane" x="{LEFT}" y="{y}" width="{inner}" height="{LANE}" rx="3"/>')
        out.append(f'<text class="mid" x="12" y="{y + LANE / 2}">rank {rank}</text>')
        out += _boxes(schedule, line, scale, y)
        out += _curve(line, schedule, costs, tallest, scale, y + LANE + CURVE + 3)
        share, peak = result.bubble[rank], result.peak_bytes[rank] / GIB
        out.append(f'<text class="mid" x="{LEFT + inner + 12}" y="{y + LANE / 2}">bubble {share:.1%}</text>')
        out.append(
            f'<text class="mid faint" x="{LEFT + inner + 12}" y="{y + LANE + 3 + CURVE / 2}">'
            f"{peak:.2f} GiB at most</text>"
        )
    return "\n".join([*filter(None, out), "</svg>"]) + "\n"


def _depth(schedule: Schedule, action: Action) -> int:
    """Which of the rank's stages, from 0."""
    if action.stage in schedule.shards:
        return 0
    return min(STAGES_DRAWN - 1, schedule.stages_of(schedule.placement[action.stage]).index(action.stage))


def _boxes(schedule: Schedule, line: Sequence[Interval], scale: float, y: int) -> Iterator[str]:
    depths = {action: _depth(schedule, action) for action in {interval.action for interval in line}}
    for action, start, end in line:
        x, width, letter = LEFT + start * scale, (end - start) * scale, letter_of(action, schedule)
        look, where = f"{letter}{depths[action]}", f"stage {action.stage}, " * (action.stage not in schedule.shards)
        what = f"{action}: {NAMES[letter]}, {where}microbatch {action.microbatch}"
        yield (
            f'<rect class="{look}" x="{x:.1f}" y="{y + 1}" width="{max(0.4, width - 0.8):.1f}" height="{LANE - 2}" rx="2">'
            f"<title>{what}, {_seconds(start)} to {_seconds(end)}</title></rect>"
        )
        number = str(action.microbatch)
        if width > DIGIT * len(number) + 2:
            yield f'<text class="n t{look}" x="{x + width / 2:.1f}" y="{y + LANE / 2}">{number}</text>'


def _curve(
    line: Sequence[Interval], schedule: Schedule, costs: Costs, tallest: float, scale: float, base: int
) -> Iterator[str]:
    """Bytes of microbatches over time, `tallest` at the top; a dashed line where the rank's memory ends, if that is in reach."""
    capacity = costs.capacity[schedule.rank_of(line[0].action.stage)]
    points: list[tuple[float, float]] = []
    now, until = 0.0, line[0].start
    for action, start, end in line:
        stage = action.stage
        if start > until:
            points += [(until, now), (start, now)]
        now += costs.kept[stage] if action.kind == "F" else 0.0
        during = now + costs.during(action.kind, stage)
        points += [(start, during), (end, during)]
        now -= costs.kept[stage] if action.kind in "BI" else 0.0  # of a shard, W gives back what F took, as owed
        now += costs.owed[stage] * ((action.kind == "I") - (action.kind == "W"))
        until = end
    corners = " ".join(f"{LEFT + t * scale:.1f},{base - held / tallest * CURVE:.1f}" for t, held in points)
    first, last = LEFT + line[0].start * scale, LEFT + line[-1].end * scale
    yield f'<polygon class="curve" points="{first:.1f},{base} {corners} {last:.1f},{base}"/>'
    if 0 < capacity <= tallest:
        y = base - capacity / tallest * CURVE
        yield f'<path class="limit" d="M{LEFT} {y:.1f}H{last:.1f}"><title>room for microbatches: {capacity / GIB:.2f} GiB</title></path>'


def _legend(schedule: Schedule) -> Iterator[str]:
    kinds = letters_of(schedule)
    chunks = max(len(schedule.stages_of(rank)) for rank in range(schedule.num_ranks))
    x = float(LEFT)
    for kind in kinds:
        for depth in range(min(chunks, len(_LIGHT[kind]))):
            yield f'<rect class="{kind}{depth}" x="{x}" y="31" width="13" height="13" rx="2"/>'
            x += 15
        yield f'<text class="mid" x="{x + 4}" y="38">{kind} {NAMES[kind]}</text>'
        x += 26 + 6.4 * len(f"{kind} {NAMES[kind]}")
    told = "numbers: microbatches" + ("; deeper: later stages of the rank" if chunks > 1 else "")
    yield f'<text class="mid faint" x="{x}" y="38">{told}; below: their memory</text>'


def _axis(makespan: float, scale: float, base: int) -> Iterator[str]:
    """A tick at every round number of seconds."""
    if not makespan:
        return
    rough = makespan / 10
    unit = 10 ** math.floor(math.log10(rough))
    every = next(n * unit for n in (1, 2, 5, 10) if n * unit >= rough)
    for index in range(int(makespan / every + 1e-9) + 1):
        x = LEFT + index * every * scale
        yield f'<path class="rule" d="M{x:.1f} {TOP - 6}V{base + 2}"/>'
        yield f'<text class="axis faint" x="{x:.1f}" y="{base + 18}">{_seconds(index * every)}</text>'


def _seconds(value: float) -> str:
    return f"{value:.4g} s" if value >= 1 or value == 0 else f"{value * 1e3:.4g} ms"
