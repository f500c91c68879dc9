"""How verbs print: JSON alone on stdout, tables (rich on a terminal, aligned text elsewhere), trees, and errors on stderr."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import typer

from ..dsl import ConfigError
from ..errors import UserError, printable

CRASHED, INTERRUPTED, WRONG = 4, 130, 2  # exit codes; UserError brings its own


class Branch(NamedTuple):
    """One node of a printed tree."""

    label: str
    below: Sequence[Branch] = ()


def on_terminal() -> bool:
    """Whether a person reads stdout."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(printable(json.dumps(value, indent=1, ensure_ascii=False)))


def say(text: str, end: str = "\n") -> None:
    """Text on stdout, which may hold what a file from anyone says."""
    print(printable(text), end=end, flush=True)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Rows under headers."""
    lines = [tuple(map(printable, row)) for row in rows]
    if on_terminal():
        from rich.console import Console
        from rich.table import Table

        table = Table(*headers, box=None, header_style="bold", pad_edge=False, show_header=any(headers))
        for line in lines:
            table.add_row(*(cell.replace("[", "\\[") for cell in line))
        Console().print(table)
        return
    widths = [max(map(len, column)) for column in zip(headers, *lines)]
    for line in (tuple(headers), *lines) if any(headers) else lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def tree_lines(root: Branch) -> list[str]:
    """A tree as lines of text."""
    return [root.label, *_below(root.below, "")]


def _below(branches: Sequence[Branch], indent: str) -> list[str]:
    lines: list[str] = []
    for position, branch in enumerate(branches, start=1):
        last = position == len(branches)
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{branch.label}")
        lines += _below(branch.below, indent + ("   " if last else "│  "))
    return lines


def complain(text: str, kind: str = "error") -> None:
    """`error: ...` or `warning: ...` on stderr, in colour on a terminal."""
    color = typer.colors.RED if kind == "error" else typer.colors.YELLOW
    typer.secho(f"{kind}: ", fg=color, err=True, nl=False)
    typer.echo(printable(text), err=True)


def guarded(work: Callable[[], None], debug: bool) -> int:
    """Run a verb. Returns its exit code, after telling on stderr what went wrong; a traceback only with `debug`."""
    try:
        work()
    except ConfigError as error:
        return _told(str(error), WRONG, debug)
    except UserError as error:
        return _told(str(error), error.exit_code, debug)
    except KeyboardInterrupt:
        return _told("interrupted", INTERRUPTED, debug)
    except BrokenPipeError:  # the reader (head, less) has seen enough
        sys.stderr.close()  # or Python complains about the same when it flushes
        return 0
    except Exception as error:
        hint = "" if debug else "\n(this should not happen; --debug shows where)"
        return _told(f"{type(error).__name__}: {error}{hint}", CRASHED, debug)
    return 0


def _told(text: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    if text:
        complain(text)
    return code
