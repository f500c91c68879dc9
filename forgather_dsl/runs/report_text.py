"""A report for a terminal: which result, how sure, what differs, what it took, and what to mind."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import printable
from .curves import curves
from .report import Report
from .report_tables import Table, configuration, costs, how_tested, others, ranks, results, runs
from .text_chart import text_chart

__all__ = ["headline", "samples", "text"]

FEW = 3  # groups up to which every run is listed in the terminal


def headline(found: Report) -> str:
    """How many runs of how many configurations."""
    n, groups = len(found.records), len(found.groups)
    return f"{n} run{'s' * (n != 1)} of {groups} configuration{'s' * (groups != 1)}"


def text(found: Report, width: int, with_samples: bool) -> str:
    """The whole report, in plain characters."""
    return printable("\n".join(_lines(found, width, with_samples)))


def _lines(found: Report, width: int, with_samples: bool) -> Iterator[str]:
    yield headline(found)
    for table in (results(found), configuration(found), others(found), costs(found), ranks(found)):
        if table is not None and table.rows:
            yield ""
            yield table.title
            yield from aligned(table)
            if table.own is not None and table.headers[-1] == "verdict":
                yield how_tested(found)
    if len(found.groups) <= FEW:
        yield from ("", "Runs", *aligned(runs(found)))
    drawn = curves(found.groups, found.metric.name, found.smooth, found.step)
    if picture := text_chart(drawn, [group.name for group in found.groups], width):
        yield from ("", f"{found.metric.title} over steps", picture)
    if with_samples:
        for name, written in samples(found):
            yield from ("", f"Sample of {name}", *("  | " + line for line in printable(written).split("\n")))
    if found.warnings:
        yield from ("", "Mind", *(f"- {warning}" for warning in found.warnings))


def aligned(table: Table) -> Iterator[str]:
    """The lines of a table; words to the left, numbers to the right."""
    headers, rows = tuple(map(printable, table.headers)), [tuple(map(printable, row)) for row in table.rows]
    widths = [max(map(len, column)) for column in zip(headers, *rows)]
    for line in (headers, *rows):
        cells = (c.ljust(w) if i in table.text else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths)))
        yield "  ".join(cells).rstrip()


def samples(found: Report) -> list[tuple[str, str]]:
    """What a run of each group last wrote: name of the group, text."""
    out = []
    for index in found.order:
        for record in found.groups[index].records:
            texts = [r["sample"] for r in record.records if isinstance(r.get("sample"), str)]
            if texts:
                out.append((found.groups[index].name, texts[-1]))
                break
    return out
