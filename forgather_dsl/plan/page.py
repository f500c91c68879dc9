"""A plan as one HTML file: verdict, picture, tables, advice, assumptions; light and dark; it loads nothing from anywhere."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from .look import PAGE_STYLE
from .picture import STYLE, svg
from .planner import Plan
from .tables import (
    Table,
    assumed,
    break_even,
    comparison_table,
    headline,
    ranks_table,
    speed,
    strategies_table,
    verdict,
)

__all__ = ["fragment", "html"]


def html(plan: Plan, data: dict[str, Any]) -> str:
    """The page. `data` is the plan's JSON."""
    head = f'<meta charset="utf-8"><title>Plan of {escape(data["target"])}</title><style>{PAGE_STYLE}{STYLE}</style>'
    body = "\n".join(_parts(plan, data))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def fragment(plan: Plan, data: dict[str, Any]) -> str:
    """The same as part of a notebook, whose own look it keeps."""
    return f"<div><style>{STYLE}</style>{''.join(_parts(plan, data))}</div>"


def _parts(plan: Plan, data: dict[str, Any]) -> list[str]:
    run = plan.run
    picture = svg(run.layout.schedule, run.simulation, run.costs, f"{data['schedule']}: one step", with_style=False)
    advice = [data["advice"], *data["alternatives"]] if data["advice"] else []
    parts = [
        f"<h1>{escape(data['target'])}</h1>",
        f'<p class="faint">{escape(headline(data).partition(" on ")[2])}</p>',
        *(f"<p>{escape(note)}</p>" for note in data["notes"]),
        f'<p class="verdict {"good" if data["fits"] else "bad"}">{escape(verdict(data))}</p>',
        f"<p>{escape(speed(data))}</p>",
        '<h2>One step, as simulated</h2><div class="scroll">',
        picture,
        "</div>",
        "<h2>Ranks: GiB by kind at the peak, time</h2>",
        _table(ranks_table(data), text=(1,)),
    ]
    if data["comparison"]:
        parts += ["<h2>Schedules on the same ranks</h2>", _table(comparison_table(data), text=(0, 4))]
    if data["strategies"]:
        parts += ["<h2>Strategies on the same cards</h2>", _table(strategies_table(data), text=(0, 7))]
        parts += [f"<p>{escape(text)}</p>" for text in break_even(data)]
    for number, lines in enumerate(advice):
        parts.append("<h2>To make it fit, in the class body</h2>" if not number else "<p>or</p>")
        parts.append(f"<pre>{escape(chr(10).join(lines))}</pre>")
    return [*parts, "<h2>Assumed</h2><ul>", *(f"<li>{escape(text)}</li>" for text in assumed(data)), "</ul>"]


def _table(table: Table, text: tuple[int, ...]) -> str:
    headers, rows = table
    headers = tuple(header.partition(" (")[0] for header in headers)  # bold says which row is this one

    def cell(tag: str, column: int, value: str) -> str:
        look = ' class="text"' if column in text else ""
        return f"<{tag}{look}>{escape(value)}</{tag}>"

    lines = ["".join(cell("th", i, header) for i, header in enumerate(headers))]
    out = [f"<tr>{lines[0]}</tr>"]
    for row in rows:
        own = ' class="own"' if re.match(r"\*", row[0]) else ""
        out.append(f"<tr{own}>{''.join(cell('td', i, value.lstrip('*')) for i, value in enumerate(row))}</tr>")
    return f'<div style="overflow-x:auto"><table>{"".join(out)}</table></div>'
