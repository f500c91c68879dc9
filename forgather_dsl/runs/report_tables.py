"""The tables of a report, as headers and rows of text: the terminal, Markdown and the page show the same ones."""

from __future__ import annotations

from typing import NamedTuple

from .record import Record, number, step_of
from .report import Report
from .results import TRAIN_LOSS, Metric, bubbles, memory, metric, value_of
from .student import LEVEL, Mean
from .verdicts import counted

__all__ = ["Table", "configuration", "costs", "others", "ranks", "results", "runs"]

GIB = 2**30
LONGEST_VALUE = 60


class Table(NamedTuple):
    """What is in it, column names, rows of cells; `text`: columns that are words rather than numbers."""

    title: str
    headers: tuple[str, ...]
    rows: list[tuple[str, ...]]
    text: tuple[int, ...] = (0,)
    own: int | None = None  # the row of the base


def spread(mean: Mean | None, digits: int) -> str:
    """A mean with the deviation of its runs."""
    if mean is None:
        return "-"
    deviation = "" if mean.deviation is None else f" ± {mean.deviation:.{digits}f}"
    return f"{mean.value:,.{digits}f}{deviation}"


def results(found: Report) -> Table:
    """Each group in the metric that is judged, best first, its difference to the base and the verdict."""
    digits, rows = found.metric.digits, []
    for index in found.order:
        verdict, out = found.verdicts[index], found.outcomes[index]
        difference = verdict.difference if verdict else None
        interval = change = p = ""
        if difference is not None:
            change = f"{difference.value:+.{digits}f}"
            if difference.low is not None and difference.high is not None:
                interval = f"{difference.low:+.{digits}f} .. {difference.high:+.{digits}f}"
            p = "" if verdict is None or verdict.corrected is None else probability(verdict.corrected)
        runs = str(out.mean.runs if out.mean else 0)
        told = "base" if verdict is None else verdict.text
        rows.append((found.groups[index].name, runs, spread(out.mean, digits), change, interval, p, told))
    headers = ("", "seeds", found.metric.title, "difference", f"{LEVEL:.0%} interval", "p", "verdict")
    return Table(_about(found), headers, rows, (0, 6), found.order.index(found.base))


def probability(p: float) -> str:
    """A p value in the digits that mean something."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def _about(found: Report) -> str:
    unit = f" ({found.metric.unit})" if found.metric.unit else ""
    at = f" at step {found.step:,}" if found.step is not None else ""
    return f"{found.metric.title}{at}{unit}, against {found.groups[found.base].name}"


def how_tested(found: Report) -> str:
    """How the verdicts were reached."""
    kinds = dict.fromkeys(
        v.difference.test for v in found.verdicts if v and v.difference and v.difference.p is not None
    )
    many = sum(1 for v in found.verdicts if v and v.corrected is not None)
    if not kinds:
        return "no test: a difference needs two seeds on each side, and says much from three on"
    holm = f"; p and verdict corrected for {many} comparisons (Holm), intervals not" if many > 1 else ""
    return f"± is the standard deviation over seeds; two-sided {', '.join(kinds)}{holm}; real: p < {1 - LEVEL:.2g}"


def configuration(found: Report) -> Table:
    """What differs from the base: group, setting, the base's value, its own."""
    rows = []
    for index in found.order:
        for position, change in enumerate(found.changes[index]):
            name = found.groups[index].name if not position else ""
            rows.append((name, change.path, short(change.base), short(change.value)))
    return Table("What differs", ("", "setting", found.groups[found.base].name, "here"), rows, (0, 1, 2, 3))


def short(value: str) -> str:
    """A setting's text, cut where a table would burst."""
    return value if len(value) <= LONGEST_VALUE else value[: LONGEST_VALUE - 3] + "..."


def others(found: Report) -> Table | None:
    """The other results: mean and deviation of each group."""
    names = [n for n in found.names if (n.startswith("eval_") or n == TRAIN_LOSS) and n != found.metric.name]
    return _means(found, "Other results", [metric(name) for name in names]) if names else None


def costs(found: Report) -> Table:
    """What the groups took: tokens, seconds, speed, memory, bubble."""
    names = [
        n
        for n in ("tokens_per_second", "step_seconds", "train_seconds", "peak_gib", "bubble", "mfu")
        if n in found.names
    ]
    table = _means(found, "What it took", [metric(name) for name in names])
    chosen = [counted(found.groups[i], found.step) or found.groups[i].records for i in found.order]
    tokens = [_mean_tokens(records) for records in chosen]
    sizes = [number(records[0].start.get("num_parameters")) for records in chosen]
    where = [str(records[0].start.get("device", "")) for records in chosen]
    rows = [
        (row[0], "-" if size is None else f"{size:,.0f}", f"{seen:,.0f}", *row[1:], place)
        for row, size, seen, place in zip(table.rows, sizes, tokens, where)
    ]
    headers = ("", "parameters", "tokens", *table.headers[1:], "device")
    return Table(table.title, headers, rows, (0, len(headers) - 1), table.own)


def _mean_tokens(records: list[Record]) -> float:
    seen = [record.clock[-1][1] for record in records if record.clock]
    return sum(seen) / len(seen) if seen else 0.0


def _means(found: Report, title: str, metrics: list[Metric]) -> Table:
    columns = [found.outcomes_of(m) for m in metrics]
    rows = []
    for index in found.order:
        rows.append(
            (found.groups[index].name, *(spread(column[index].mean, m.digits) for column, m in zip(columns, metrics)))
        )
    return Table(title, ("", *(m.title for m in metrics)), rows, (0,), found.order.index(found.base))


def ranks(found: Report) -> Table | None:
    """Memory and bubble of each rank, measured beside planned, of a run of each group that has several."""
    rows = []
    for group in (found.groups[index] for index in found.order):
        record = next((r for r in reversed(group.records) if len(memory(r)) > 1), None)
        if record is None:
            continue
        measured, waits, planned = memory(record), bubbles(record), record.plan.get("ranks")
        for rank, held in enumerate(measured):
            about = planned[rank] if isinstance(planned, list) and rank < len(planned) else {}
            about = about if isinstance(about, dict) else {}
            peak, wait = number(about.get("peak_gib")), number(about.get("bubble"))
            rows.append(
                (
                    group.name if not rank else "",
                    str(rank),
                    f"{held / GIB:.2f}",
                    "-" if peak is None else f"{peak:.2f}",
                    f"{waits[rank]:.1%}" if rank < len(waits) else "-",
                    "-" if wait is None else f"{wait:.1%}",
                )
            )
    headers = ("", "rank", "GiB at most", "planned", "bubble", "planned")
    return Table("Ranks", headers, rows) if rows else None


def runs(found: Report) -> Table:
    """Every run: how it ended, and what it reached."""
    rows = []
    for group in (found.groups[index] for index in found.order):
        for position, record in enumerate(group.records):
            step = step_of(record.records[-1]) if record.records else 0
            reached = value_of(record, found.metric.name, found.step)
            rate = value_of(record, "tokens_per_second")
            rows.append(
                (
                    group.name if not position else "",
                    record.seed,
                    record.state,
                    f"{step:,}",
                    "-" if reached is None else f"{reached:,.{found.metric.digits}f}",
                    "-" if rate is None else f"{rate:,.0f}",
                    record.path,
                )
            )
    return Table("Runs", ("", "seed", "state", "step", found.metric.title, "tokens/s", "path"), rows, (0, 2, 6))
