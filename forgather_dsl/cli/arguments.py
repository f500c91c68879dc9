"""What verbs have in common on the command line: a target, settings, and how a verb ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from . import listing
from .output import guarded


def complete_target(incomplete: str) -> list[str]:
    """Targets that begin so, for shells."""
    return listing.complete(incomplete)


Target = Annotated[
    str, typer.Argument(help="file.py:Class, file.py, a module or a run", autocompletion=complete_target)
]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="change a value; repeatable")]
Smoke = Annotated[bool, typer.Option("--smoke", help="shrunk to sizes that train anywhere in seconds, on its ranks")]
Json = Annotated[bool, typer.Option("--json", help="print JSON alone")]
Debug = Annotated[bool, typer.Option("--debug", help="show tracebacks")]


def end(work: Callable[[], None], debug: bool) -> None:
    """Do the verb's work and exit with its code."""
    raise typer.Exit(guarded(work, debug))
