"""`run`: training, of one experiment or of many."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..errors import UserError
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
    seeds: Annotated[
        str | None, typer.Option("--seeds", metavar="N|A,B,..", help="train with these seeds, or with so many")
    ] = None,
    grid: Annotated[
        list[str] | None,
        typer.Option("--sweep", metavar="PATH=V,V,..", help="train with each of these values; several span a grid"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="of several, how many at once; default: as many as have GPUs, else 1"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Train one experiment, or several. Without a target: the first experiment of the gallery."""

    def work() -> None:
        from ..runs.run import is_run
        from .sweeping import run_sweep, source_of
        from .targets import find_experiment, shrunk

        chosen = gallery.first_target() if target is None else target
        source = source_of(chosen)
        if source is not None or seeds is not None or grid:
            if allow_change:
                raise UserError("--allow-change is for one run; the members of a sweep are known by what they are")
            how = {"out": out, "resume": resume, "smoke": smoke, "profile": profile, "model": model and not smoke}
            run_sweep(chosen, source, set_ or [], grid or [], seeds, jobs=jobs, trust=trust, command=sys.argv, **how)
            return
        if jobs is not None:
            raise UserError("--jobs is for several experiments; write --seeds, --sweep, or a target that names several")
        experiment = find_experiment(chosen, set_ or [], trust)
        from ..train.trainer import Trainer

        place = out if out is not None or not is_run(chosen) else chosen  # a run goes on where it is
        if smoke:
            experiment, place = shrunk(experiment, out, resume)
        options = {"resume": resume, "allow_change": allow_change, "target": chosen, "command": sys.argv}
        Trainer(experiment, out=place, profile=profile, trust=trust, model=model and not smoke, **options).fit()

    end(work, debug)
