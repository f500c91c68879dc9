"""A schedule as text: one line per rank, time to the right.

In: a `Schedule` and what its simulation found. Out: lines of a given width, in colour for a terminal; labels give way to
letters where there is no room for them. `draw` is the plain form, as wide as its labels need.
"""

from __future__ import annotations

from collections.abc import Sequence

from forgather_dsl.plan.actions import Action, Schedule
from forgather_dsl.plan.simulate import Simulation, simulate

__all__ = ["NAMES", "draw", "letter_of", "letters_of", "timeline_text"]

IDLE = "."
NAMES = {"F": "forward", "B": "backward", "I": "backward for inputs", "W": "backward for weights"}
NAMES |= {"H": "shard of the head and the loss", "h": "its weights"}
COLORS = {"F": (75, 110), "B": (71, 108), "I": (73, 109), "W": (179, 144), "H": (140, 139), "h": (182, 181)}
"""Of 256: for even microbatches, for odd ones."""


def letter_of(action: Action, schedule: Schedule) -> str:
    """The action's own letter; of a shard of the head, H and h for its weights."""
    if action.stage in schedule.shards:
        return "H" if action.kind == "F" else "h"
    return action.kind


def letters_of(schedule: Schedule) -> list[str]:
    """The letters that a drawing of it needs, in the order of `NAMES`."""
    used = {letter_of(action, schedule) for row in schedule.actions for action in row}
    return [letter for letter in NAMES if letter in used]


def timeline_text(schedule: Schedule, result: Simulation, width: int, *, color: bool = False) -> str:
    """The simulated timeline in lines of `width` columns, then what its letters mean.

    Every action is labelled where all labels fit, else it is a run of its letter, small for the second stage of a rank and
    further ones; in colour it is a field with the number of its microbatch, where that fits.
    """
    ends = [f"| bubble {share:5.1%}" for share in result.bubble]
    starts = [f"rank {rank} |".rjust(len(f"rank {schedule.num_ranks - 1} |")) for rank in range(schedule.num_ranks)]
    columns = max(8, width - len(starts[0]) - max(map(len, ends)))
    scale = columns / result.makespan if result.makespan else 0.0
    rows = [_runs(line, scale, columns) for line in result.timeline]
    names = {a: _label(a, schedule) for row in schedule.actions for a in row}
    labelled = all(len(run) > len(names[a]) for row in rows for a, run in row if a is not None)
    if labelled:
        labelled = sum(a is not None for row in rows for a, _ in row) == sum(map(len, schedule.actions))
    lines = []
    for start, row, end in zip(starts, rows, ends):
        cells = [_cells(action, run, schedule, names, labelled, color) for action, run in row]
        lines.append(start + "".join(cells) + end)
    return "\n".join([*lines, *_legend(schedule, result, labelled, color)])


def _runs(line: Sequence, scale: float, columns: int) -> list[tuple[Action | None, range]]:
    """Columns by the action that runs in the middle of each, None for none."""
    runs: list[tuple[Action | None, range]] = []
    position = 0
    for column in range(columns):
        moment = (column + 0.5) / scale if scale else 0.0
        while position < len(line) and line[position].end <= moment:
            position += 1
        running = position < len(line) and line[position].start <= moment
        action = line[position].action if running else None
        if runs and runs[-1][0] == action:
            runs[-1] = (action, range(runs[-1][1].start, column + 1))
        else:
            runs.append((action, range(column, column + 1)))
    return runs


def _cells(
    action: Action | None, run: range, schedule: Schedule, names: dict[Action, str], labelled: bool, color: bool
) -> str:
    if action is None:
        return f"\x1b[2m{IDLE * len(run)}\x1b[0m" if color else IDLE * len(run)
    if color:
        number = str(action.microbatch)
        text = (names[action] if labelled else number if len(number) < len(run) else "").ljust(len(run))
        shade = COLORS[letter_of(action, schedule)][action.microbatch % 2]
        return f"\x1b[38;5;16;48;5;{shade}m{text}\x1b[0m"
    if labelled:
        return names[action].ljust(len(run) - 1, "-").ljust(len(run))
    return _letter(action, schedule) * len(run)


def _label(action: Action, schedule: Schedule) -> str:
    """`F3`, with the stage before it where a rank holds several."""
    letter = letter_of(action, schedule)
    if schedule.num_stages > schedule.num_ranks and letter == action.kind:
        return str(action)
    return f"{letter}{action.microbatch}"


def _letter(action: Action, schedule: Schedule) -> str:
    letter = letter_of(action, schedule)
    first = letter != action.kind or schedule.stages_of(schedule.rank_of(action.stage))[0] == action.stage
    return letter if first else letter.lower()


def _legend(schedule: Schedule, result: Simulation, labelled: bool, color: bool) -> list[str]:
    kinds = letters_of(schedule)
    if color:
        parts = [f"\x1b[38;5;16;48;5;{COLORS[kind][0]}m {kind} \x1b[0m {NAMES[kind]}" for kind in kinds]
    else:
        parts = [f"{kind} {NAMES[kind]}" for kind in kinds]
    parts.append(f"{IDLE} idle")
    several = schedule.num_stages > schedule.num_ranks
    if labelled:
        parts.append("2F0 is stage 2, microbatch 0" if several else "F0 is microbatch 0")
    elif color:
        parts.append("numbers are microbatches")
    elif several:
        parts.append("small letters: the later stages of a rank")
    return [f"{', '.join(parts)}; {result.makespan:.3g} s from left to right"]


def draw(
    schedule: Schedule,
    forward: float | Sequence[float] = 1.0,
    input_grad: float | Sequence[float] = 1.0,
    weight_grad: float | Sequence[float] = 1.0,
    communication: float = 0.0,
) -> str:
    """A picture: one line per rank, time to the right, `F3` where an action starts, `-` while it lasts, `.` idle.

    With several stages on a rank, a label says its stage too (`7F3`). Ends with the bubble and peak of each rank.
    """
    result = simulate(schedule, forward, input_grad, weight_grad, communication)
    one_each = schedule.num_stages == schedule.num_ranks
    labels = {a: str(a)[len(str(a.stage)) :] if one_each else str(a) for row in schedule.actions for a in row}
    shortest = min((i.end - i.start for line in result.timeline for i in line if i.end > i.start), default=1.0)
    scale = (max(map(len, labels.values())) + 1) / shortest  # columns per unit of time: every label fits its action
    lines = []
    for rank, line in enumerate(result.timeline):
        text = ["."] * round(result.makespan * scale)
        for action, start, end in line:
            first, width = round(start * scale), round(end * scale) - round(start * scale)
            text[first : first + width] = labels[action].ljust(width - 1, "-").ljust(width)[:width]
        lines.append(f"rank {rank} |{''.join(text)}| bubble {result.bubble[rank]:.1%}, peak {result.peak[rank]}")
    return "\n".join(lines)
