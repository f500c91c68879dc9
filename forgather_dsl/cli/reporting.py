"""`report`: compare runs, which differences are real, what they took. No torch; nothing of a run directory is executed."""

from __future__ import annotations

import os
import shutil
from typing import Annotated

import typer

from ..errors import UserError
from .arguments import Debug, Json, complete_target, end
from .output import print_json, say

RUNS = "runs"


def report_verb(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN...", help="run directories, folders of them, patterns", autocompletion=complete_target
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="NAME|RUN", help="what the others are held against")
    ] = None,
    metric: Annotated[str | None, typer.Option("--metric", help="the result to judge; default: held-out loss")] = None,
    step: Annotated[int | None, typer.Option("--step", min=1, help="compare at this step, unfinished runs too")] = None,
    smooth: Annotated[
        int | None, typer.Option("--smooth", min=1, help="records that a point of the training loss averages")
    ] = None,
    samples: Annotated[bool, typer.Option("--samples", help="show what the models wrote")] = False,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="write one page that works offline")
    ] = None,
    markdown: Annotated[str | None, typer.Option("--markdown", metavar="FILE", help="write it as Markdown")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare runs: what differs, which differences are real, curves, speed and memory."""

    def work() -> None:
        from ..runs.report import report

        found = report(*(places or (_usual(),)), base=base, by=metric, step=step, smooth=smooth)
        for option, file, write in (("--html", html, found.html), ("--markdown", markdown, found.markdown)):
            if file is not None:
                _written(option, file, write())
        if json:
            print_json(found.data)
        else:
            say(found.text(min(160, shutil.get_terminal_size((100, 24)).columns), samples))

    end(work, debug)


def _usual() -> str:
    if os.path.isdir(RUNS):
        return RUNS
    raise UserError(f"which runs? there is no folder {RUNS} here; write run directories, or folders of them")


def _written(option: str, file: str, text: str) -> None:
    try:
        with open(file, "w", encoding="utf-8", errors="replace") as opened:
            opened.write(text)
    except OSError as error:
        raise UserError(f"{option} {file}: {error.strerror}; write a file in a folder that exists") from error
