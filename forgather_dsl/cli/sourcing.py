"""`codegen`: the model of an experiment or a run as one file that needs torch alone, and what differs between two of them."""

from __future__ import annotations

import difflib
import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .arguments import Debug, Json, Settings, Target, complete_target, end
from .output import on_terminal, print_json, say

if TYPE_CHECKING:
    from ..specs import Experiment

HELP = """Write the model as one Python file that needs torch alone.

codegen TARGET --out DIR: model.py, tried before it is written, in a process that has torch alone: the same logits, loss,
gradients and first weights, bit for bit.

codegen RUN --out DIR: the same with the weights of its newest checkpoint in model.safetensors, which load_model() reads.

codegen A --diff B: what differs between the two files; an experiment's choice is one hunk.

codegen TARGET --print: the text alone, not tried."""


def codegen_verb(
    target: Target,
    set_: Settings = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="a new folder")] = None,
    diff: Annotated[
        str | None,
        typer.Option("--diff", metavar="OTHER", help="compare with this one's", autocompletion=complete_target),
    ] = None,
    print_: Annotated[bool, typer.Option("--print", help="print the text, and write nothing")] = False,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="of a run: those of its checkpoint")] = True,
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="try the file before it is written")] = True,
    trust: Annotated[bool, typer.Option("--trust", help="of a run: import the user's own code that it names")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the model as one Python file that needs torch alone."""

    def work() -> None:
        if [out is not None, diff is not None, print_].count(True) != 1:
            raise UserError("write one of --out DIR, --diff OTHER and --print")
        if out is not None:
            _write(target, set_ or [], out, weights, proof, trust, json)
        elif diff is not None:
            _diff(target, diff, set_ or [], trust, json)
        else:
            text = _text(target, set_ or [], trust)
            print_json({"target": target, "text": text}) if json else say(text, end="")

    end(work, debug)


codegen_verb.__doc__ = HELP


def _experiment(target: str, settings: list[str], trust: bool) -> Experiment:
    from .targets import find_experiment

    return find_experiment(target, settings, trust)


def _text(target: str, settings: list[str], trust: bool) -> str:
    experiment = _experiment(target, settings, trust)
    from ..interop.standalone import source_of

    return source_of(experiment).text


def _write(target: str, settings: list[str], out: str, weights: bool, proof: bool, trust: bool, json: bool) -> None:
    from ..runs.run import is_run

    experiment = _experiment(target, settings, trust)
    from ..interop.folder import new_folder
    from ..interop.standalone import write_standalone, write_text

    with new_folder(out) as partial:
        if weights and is_run(target):
            from ..interop.outgoing import open_outgoing

            lines = write_standalone(open_outgoing(target, experiment), partial, proof)
        else:
            lines = write_text(experiment, partial, proof)
        files = {name: os.path.getsize(os.path.join(partial, name)) for name in sorted(os.listdir(partial))}
    if json:
        print_json({"target": target, "out": out, "files": files, "proof": lines})
        return
    for line in lines:
        say(line)
    for name, size in files.items():
        say(f"{os.path.join(out, name)}  {size:,} bytes")
    call = "load_model()" if "model.safetensors" in files else "build_model()"
    say(f"next: cd {out} && python -i -c 'import model; m = model.{call}'")


def _diff(left: str, right: str, settings: list[str], trust: bool, json: bool) -> None:
    a, b = (_text(target, settings, trust).splitlines(keepends=True) for target in (left, right))
    lines = list(difflib.unified_diff(a, b, left, right))
    if json:
        print_json({"left": left, "right": right, "diff": "".join(lines)})
    elif not lines:
        say("no difference")
    else:
        for line in lines:
            _show(line)


def _show(line: str) -> None:
    colors: dict[str, Any] = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}
    if on_terminal() and line[0] in colors:
        typer.secho(line.rstrip("\n"), fg=colors[line[0]], bold=line.startswith(("+++", "---")))
    else:
        say(line, end="" if line.endswith("\n") else "\n")
