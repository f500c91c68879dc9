"""A report as one page (HTML) that needs nothing else, and a short form of it for notebooks.

Everything that comes from a run directory is escaped, and the page's policy lets no script run but its own, load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from html import escape

from ..errors import printable
from ..plan.look import PAGE_STYLE
from .chart import color_of, forest, line_chart
from .curves import AXES, Curve, curves
from .groups import NONE
from .report import Report
from .report_look import FRAGMENT_STYLE, SCRIPT, STYLE, shown
from .report_tables import Table, configuration, costs, how_tested, others, ranks, results, runs, short
from .report_text import headline, samples
from .results import TRAIN_LOSS, Metric, metric

__all__ = ["fragment", "page"]

MORE_FIGURES = ("tokens_per_second", "grad_norm", "lr")
MOST_FIGURES = 8


def page(found: Report) -> str:
    """The whole page."""
    hashed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hashed}'"
    style = PAGE_STYLE + FRAGMENT_STYLE + STYLE + shown(len(found.groups))
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{_safe(headline(found))}</title><style>{style}</style>"
    )
    body = "\n".join(_body(found))
    script = f'<div id="tip"></div>\n<script>{SCRIPT}</script>'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body class="fgr">\n{body}\n{script}\n</body></html>\n'
    )


def fragment(found: Report) -> str:
    """Results, intervals and the curve of the judged result over steps, for a notebook."""
    figure = next(_figures(found), None)
    parts = [f"<p><b>{_safe(headline(found))}</b></p>", _results(found), _intervals(found)]
    if figure is not None:
        asked, drawn = figure
        names = [group.name for group in found.groups]
        parts += [_legend(found, drawn, boxes=False)]
        parts.append(line_chart(drawn, names, found.base, 0, log=False, title=asked.title, look=""))
    parts.append(_mind(found))
    return f'<div class="fgr"><style>{FRAGMENT_STYLE}</style>{"".join(parts)}</div>'


def _body(found: Report) -> Iterator[str]:
    yield f"<h1>{_safe(headline(found))}</h1>"
    yield f'<p class="faint">{_safe(", ".join(dict.fromkeys(r.target for r in found.records)))}</p>'
    yield f"<h2>{_safe(results(found).title)}</h2>"
    yield _results(found)
    yield f'<p class="faint">{_safe(how_tested(found))}</p>'
    yield _intervals(found)
    yield _mind(found)
    yield from _curves(found)
    for table in (configuration(found), others(found), costs(found), ranks(found)):
        if table is not None and table.rows:
            yield f"<h2>{_safe(table.title)}</h2>"
            yield _table(table)
    if len(found.differing) > 1 and len(found.groups) > 2:
        yield f"<details><summary>All settings that differ, side by side</summary>{_table(_matrix(found))}</details>"
    if written := samples(found):
        yield "<h2>Samples</h2>"
        for name, text in written:
            yield f"<details><summary>{_safe(name)}</summary><pre>{_safe(text)}</pre></details>"
    yield f"<h2>Runs</h2>{_table(runs(found))}"


def _safe(text: str) -> str:
    return escape(printable(text))


def _results(found: Report) -> str:
    kinds = [verdict.kind if (verdict := found.verdicts[i]) else "" for i in found.order]
    return _table(results(found), last=kinds)


def _intervals(found: Report) -> str:
    title = f"difference in {found.metric.title} to {found.groups[found.base].name}"
    names = [group.name for group in found.groups]
    picture = forest(names, found.verdicts, found.order, found.metric.digits, title)
    return f'<div class="figure">{picture}</div>' if picture else ""


def _mind(found: Report) -> str:
    if not found.warnings:
        return ""
    items = "".join(f"<li>{_safe(warning)}</li>" for warning in found.warnings)
    return f'<div class="mind"><b>Mind</b><ul>{items}</ul></div>'


def _figures(found: Report) -> Iterator[tuple[Metric, list[Curve]]]:
    """The judged result, the training loss, named held-out sets, and what shows how training went."""
    losses = [name for name in found.names if name.startswith("eval_loss")]
    names = dict.fromkeys([found.metric.name, TRAIN_LOSS, *losses, *MORE_FIGURES])
    for name in list(names)[:MOST_FIGURES]:
        drawn = curves(found.groups, name, found.smooth, found.step)
        if any(len(curve.points) > 1 for curve in drawn):
            yield metric(name), drawn


def _curves(found: Report) -> Iterator[str]:
    figures = list(_figures(found))
    if not figures:
        return
    yield "<h2>Curves</h2>"
    axes = "".join(
        f'<label><input type="radio" name="x" id="x{i}"{" checked" * (i == 0)}> {name}</label>'
        for i, name in enumerate(AXES)
    )
    scales = "".join(
        f'<label><input type="radio" name="scale" id="{name}"{" checked" * (name == "linear")}> {name}</label>'
        for name in ("linear", "log")
    )
    yield f'<div class="controls"><fieldset>over {axes}</fieldset><fieldset>axes {scales}</fieldset></div>'
    yield _legend(found, [curve for _, drawn in figures for curve in drawn], boxes=True)
    names = [group.name for group in found.groups]
    yield '<div class="figures">'
    for asked, drawn in figures:
        smoothed = asked.name == TRAIN_LOSS and found.smooth > 1
        told = f", running mean over {found.smooth} records" if smoothed else ""
        told += "; bands: ± one standard deviation over seeds" if any(curve.runs > 1 for curve in drawn) else ""
        yield f'<div class="figure"><h3>{_safe(asked.title)}<span class="faint">{told}</span></h3>'
        for axis in range(len(AXES)):
            for log in (False, True):
                look = f"multi x{axis} {'log' if log else 'linear'}"
                yield line_chart(drawn, names, found.base, axis, log=log, title=asked.title, look=look)
        yield "</div>"
    yield "</div>"


def _legend(found: Report, drawn: list[Curve], boxes: bool) -> str:
    shown_groups = {curve.group for curve in drawn}
    items = []
    for index in found.order:
        if index in shown_groups:
            color, dash = color_of(index, found.base)
            dashed = ' style="border-top-style:dashed"' if dash else ""
            box = f'<input type="checkbox" id="g{index}" checked>' if boxes else ""
            swatch = f'<span class="{color}"><span class="swatch"{dashed}></span></span>'
            items.append(f"<label>{box}{swatch}{_safe(found.groups[index].name)}</label>")
    return f'<div class="legend">{" ".join(items)}</div>'


def _matrix(found: Report) -> Table:
    """Groups in columns, settings in rows."""
    groups = [found.groups[i] for i in found.order]
    rows = [(path, *(short(group.settings.get(path, NONE)) for group in groups)) for path in found.differing]
    return Table("", ("setting", *(group.name for group in groups)), rows, tuple(range(len(groups) + 1)))


def _table(table: Table, last: list[str] | None = None) -> str:
    """`last`: classes of the cells in the last column."""

    def cell(tag: str, column: int, value: str, look: str) -> str:
        classes = " ".join(filter(None, ("text" if column in table.text else "", look)))
        return f"<{tag} class='{classes}'>{_safe(value)}</{tag}>" if classes else f"<{tag}>{_safe(value)}</{tag}>"

    out = [f"<tr>{''.join(cell('th', i, header, '') for i, header in enumerate(table.headers))}</tr>"]
    for position, row in enumerate(table.rows):
        ends = [""] * (len(row) - 1) + [f"verdict {last[position]}" if last else ""]
        own = ' class="own"' if position == table.own else ""
        out.append(f"<tr{own}>{''.join(cell('td', i, value, ends[i]) for i, value in enumerate(row))}</tr>")
    return f'<div class="wide"><table>{"".join(out)}</table></div>'
