"""`run`: training, of one experiment or of many."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..errors import UserError
from . import gallery
from .arguments import Debug, Settings, Smoke, complete_target, end
from .output import say

LAUNCHER = "torchrun|slurm|skypilot"


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
    print_launch: Annotated[
        str | None, typer.Option("--print-launch", metavar=LAUNCHER, help="train nothing; print what to start where")
    ] = None,
    gpus_per_node: Annotated[
        int | None,
        typer.Option("--gpus-per-node", metavar="N", help="of it: cards of a machine, or ranks without cards"),
    ] = None,
    hosts: Annotated[
        str | None,
        typer.Option("--hosts", metavar="A[:PORT],B", help="of torchrun: the machines, the first is rank 0's"),
    ] = None,
    interface: Annotated[
        str | None, typer.Option("--interface", metavar="NAME", help="of it: the network between them; else found")
    ] = None,
    debug: Debug = False,
) -> None:
    """Train. Without a target: the first experiment of the gallery."""

    def work() -> None:
        from ..runs.run import is_run
        from .targets import find_experiment, shrunk

        chosen = gallery.first_target() if target is None else target
        experiment = find_experiment(chosen, set_ or [], trust)
        said = {"--gpus-per-node": gpus_per_node, "--hosts": hosts, "--interface": interface}
        if print_launch is None and (idle := [name for name, value in said.items() if value is not None]):
            raise UserError(f"{', '.join(idle)}: of --print-launch {LAUNCHER}, which is not given")
        if print_launch is not None:
            flags = {"--allow-change": allow_change, "--no-model": not model, "--trust": trust, "--smoke": smoke}
            _print_launch(experiment, chosen, set_ or [], out, resume, profile, flags, print_launch, said)
            return
        from ..train.trainer import Trainer

        place = out if out is not None or not is_run(chosen) else chosen  # a run goes on where it is
        if smoke:
            experiment, place = shrunk(experiment, out, resume)
        options = {"resume": resume, "allow_change": allow_change, "target": chosen, "command": sys.argv}
        Trainer(experiment, out=place, profile=profile, trust=trust, model=model and not smoke, **options).fit()

    end(work, debug)


def _print_launch(
    experiment: Any,
    chosen: str,
    settings: list[str],
    out: str | None,
    resume: str,
    profile: bool,
    flags: dict[str, bool],
    launcher: str,
    said: dict[str, Any],
) -> None:
    """The script that starts this run on its machines."""
    from ..runs.run import is_run
    from ..train.directory import choose
    from .launching import Asked, launch_text

    if profile:
        raise UserError(
            "--profile measures on one machine; run it there first, then give the file as parallel.schedule.profile"
        )
    place = out if out is not None else chosen if is_run(chosen) else choose(experiment, None, resume)
    words = ["run", chosen, *(word for setting in settings for word in ("--set", setting)), "--out", place]
    words += ["--resume", resume] if resume != "auto" else []
    words += [flag for flag, on in flags.items() if on]
    say(launch_text(experiment, Asked(launcher, words, place, *said.values())), end="")
