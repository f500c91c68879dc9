"""`run`: training, of one experiment or of many."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from . import gallery
from .arguments import Debug, Settings, Smoke, complete_target, end


def run_verb(
    target: Annotated[
        str | None, typer.Argument(help="default: First of the gallery", autocompletion=complete_target)
    ] = None,
    set_: Settings = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="the run directory")] = None,
    resume: Annotated[str, typer.Option("--resume", help="auto, never, or the path of a checkpoint")] = "auto",
    allow_change: Annotated[bool, typer.Option("--allow-change", help="resume a changed experiment")] = False,
    smoke: Smoke = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="measure the model's parts first, and plan with that")
    ] = False,
    model: Annotated[
        bool, typer.Option("--model/--no-model", help="at the end, write the model as one file that needs torch alone")
    ] = True,
    trust: Annotated[bool, typer.Option("--trust", help="of a run: import the user's own code that it names")] = False,
    debug: Debug = False,
) -> None:
    """Train. Without a target: the first experiment of the gallery."""

    def work() -> None:
        from ..runs.run import is_run
        from .targets import find_experiment, shrunk

        chosen = gallery.first_target() if target is None else target
        experiment = find_experiment(chosen, set_ or [], trust)
        from ..train.trainer import Trainer

        place = out if out is not None or not is_run(chosen) else chosen  # a run goes on where it is
        if smoke:
            experiment, place = shrunk(experiment, out, resume)
        options = {"resume": resume, "allow_change": allow_change, "target": chosen, "command": sys.argv}
        Trainer(experiment, out=place, profile=profile, trust=trust, model=model and not smoke, **options).fit()

    end(work, debug)
