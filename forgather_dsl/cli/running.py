"""`run`: training, of one experiment or of many."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from ..errors import UserError
from . import gallery
from .arguments import Debug, Settings, Smoke, complete_target, end
from .output import say

NO_LAUNCH = (None,) * 4
Seeds = Annotated[
    str | None, typer.Option("--seeds", metavar="N|A,B,..", help="train with these seeds, or with so many")
]
Grid = Annotated[
    list[str] | None,
    typer.Option("--sweep", metavar="PATH=V,V,..", help="train with each of these values; several span a grid"),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="of several, how many at once; default: as many as have GPUs, else 1"),
]
PrintLaunch = Annotated[
    str | None,
    typer.Option("--print-launch", metavar="torchrun|slurm|skypilot", help="train nothing; print what to start where"),
]
GpusPerNode = Annotated[
    int | None, typer.Option("--gpus-per-node", metavar="N", help="of it: cards of a machine, or ranks without cards")
]
Hosts = Annotated[
    str | None, typer.Option("--hosts", metavar="A[:PORT],B", help="of torchrun: the machines, the first is rank 0's")
]
Interface = Annotated[
    str | None, typer.Option("--interface", metavar="NAME", help="of it: the network between them; else found")
]


Out = Annotated[str | None, typer.Option("--out", metavar="DIR", help="the run directory")]
Resume = Annotated[str, typer.Option("--resume", help="auto, never, or the path of a checkpoint")]
AllowChange = Annotated[bool, typer.Option("--allow-change", help="resume a changed experiment")]
Profile = Annotated[bool, typer.Option("--profile", help="measure the model's parts first, and plan with that")]
Model = Annotated[
    bool, typer.Option("--model/--no-model", help="at the end, write the model as one file that needs torch alone")
]
Trust = Annotated[bool, typer.Option("--trust", help="of a run: import the user's own code that it names")]


def run_verb(
    target: Annotated[
        str | None, typer.Argument(help="default: First of the gallery", autocompletion=complete_target)
    ] = None,
    set_: Settings = None,
    out: Out = None,
    resume: Resume = "auto",
    allow_change: AllowChange = False,
    smoke: Smoke = False,
    profile: Profile = False,
    model: Model = True,
    trust: Trust = False,
    seeds: Seeds = None,
    grid: Grid = None,
    jobs: Jobs = None,
    print_launch: PrintLaunch = None,
    gpus_per_node: GpusPerNode = None,
    hosts: Hosts = None,
    interface: Interface = None,
    debug: Debug = False,
) -> None:
    """Train one experiment, or several. Without a target: the first experiment of the gallery."""

    def work() -> None:
        from .sweeping import run_sweep, source_of
        from .targets import find_experiment

        chosen = gallery.first_target() if target is None else target
        source = source_of(chosen)
        launch = (print_launch, gpus_per_node, hosts, interface)
        if source is not None or seeds is not None or grid:
            if launch != NO_LAUNCH:
                raise UserError("--print-launch is for one run; print it for each member of the sweep")
            if allow_change:
                raise UserError("--allow-change is for one run; the members of a sweep are known by what they are")
            how = {"out": out, "resume": resume, "smoke": smoke, "profile": profile, "model": model and not smoke}
            run_sweep(chosen, source, set_ or [], grid or [], seeds, jobs=jobs, trust=trust, command=sys.argv, **how)
            return
        if jobs is not None:
            raise UserError("--jobs is for several experiments; write --seeds, --sweep, or a target that names several")
        experiment = find_experiment(chosen, set_ or [], trust)
        if launch != NO_LAUNCH:
            flags = {"--allow-change": allow_change, "--no-model": not model, "--trust": trust, "--smoke": smoke}
            _print_launch(experiment, chosen, set_ or [], out, resume, profile, flags, *launch)
            return
        options = {"allow_change": allow_change, "profile": profile, "trust": trust, "model": model and not smoke}
        _train(experiment, chosen, out, resume, smoke, **options)

    end(work, debug)


def _print_launch(*run_and_options: Any) -> None:
    from .launching import launch_script

    say(launch_script(*run_and_options), end="")


def _train(experiment: Any, target: str, out: str | None, resume: str, smoke: bool, **options: Any) -> None:
    from ..runs.run import is_run
    from ..train.trainer import Trainer
    from .targets import shrunk

    place = out if out is not None or not is_run(target) else target  # a run goes on where it is
    if smoke:
        experiment, place = shrunk(experiment, out, resume)
    Trainer(experiment, out=place, resume=resume, target=target, command=sys.argv, **options).fit()
