"""A report in Markdown, as GitHub shows it: the same tables as in the terminal, the curve in characters, samples."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..errors import printable
from .curves import curves
from .report import Report
from .report_tables import Table, configuration, costs, how_tested, others, ranks, results, runs
from .report_text import headline, samples
from .text_chart import text_chart

__all__ = ["markdown"]

STRONG = ("better: real", "worse: real")


def markdown(found: Report) -> str:
    """The whole report."""
    return "\n".join(_parts(found)) + "\n"


def _parts(found: Report) -> Iterator[str]:
    yield f"# Report: {headline(found)}"
    first = results(found)
    yield from ("", f"## {escaped(first.title)}", "", *_table(first), "", escaped(how_tested(found)))
    for table in (configuration(found), others(found), costs(found), ranks(found)):
        if table is not None and table.rows:
            yield from ("", f"## {escaped(table.title)}", "", *_table(table))
    drawn = curves(found.groups, found.metric.name, found.smooth, found.step)
    if picture := text_chart(drawn, [group.name for group in found.groups]):
        yield from ("", f"## {escaped(found.metric.title)} over steps", "", *_fenced(picture))
    if found.warnings:
        yield from ("", "## Mind", "", *(f"- {escaped(warning)}" for warning in found.warnings))
    if written := samples(found):
        yield from ("", "## Samples")
        for name, text in written:
            yield from ("", escaped(name), "", *_fenced(text))
    yield from ("", "## Runs", "", *_table(runs(found)))


def _table(table: Table) -> Iterator[str]:
    yield "| " + " | ".join(escaped(header) for header in table.headers) + " |"
    yield "|" + "|".join(" --- " if i in table.text else " ---: " for i in range(len(table.headers))) + "|"
    for row in table.rows:
        yield "| " + " | ".join(f"**{cell}**" if cell in STRONG else escaped(cell) for cell in row) + " |"


def escaped(text: str) -> str:
    """Text from a file, as text: nothing in it is markup, HTML or the end of a cell."""
    text = re.sub(r"\s+", " ", printable(text))
    return re.sub(r"([\\`*_\[\]<>|#~!&])", r"\\\1", text)


def _fenced(text: str) -> Iterator[str]:
    """A block of code that no line of the text can end."""
    runs_of_ticks = re.findall(r"`{3,}", text)
    fence = "`" * max([3, *(len(ticks) + 1 for ticks in runs_of_ticks)])
    yield from (f"{fence}text", printable(text), fence)
