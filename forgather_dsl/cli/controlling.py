"""The verb `control`: how a run is, and asking it to save or stop, from another shell. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import UserError
from .arguments import Debug, Json, complete_target, end
from .output import print_json, print_table

VERBS = ("status", "save", "stop")


def control_verb(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run directory", autocompletion=complete_target)],
    verb: Annotated[str, typer.Argument(metavar="|".join(VERBS), autocompletion=lambda: VERBS)] = "status",
    timeout: Annotated[float, typer.Option("--timeout", min=0.0, help="seconds to wait for the answer")] = 300.0,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """See how a run is doing; have it save, or stop."""

    def work() -> None:
        from ..train import control

        if verb not in VERBS:
            raise UserError(f"control {run} {verb}: write one of {', '.join(VERBS)}")
        if verb == "status":
            found = control.status(run)
            print_json(found) if json else print_table(("", ""), _rows(found, control.told(found)))
            return
        reply = control.ask(run, verb, timeout)
        if json:
            print_json(reply)
        else:
            print(_told(reply, verb))

    end(work, debug)


def _told(reply: dict[str, Any], verb: str) -> str:
    saved = f"step {reply['step']}: {reply['checkpoint']}" if reply.get("checkpoint") else "no checkpoint"
    if "ended" in reply:
        return f"the run has {reply['ended']} meanwhile; {saved}"
    return f"{'stopped; saved' if verb == 'stop' else 'saved'} {saved}"


def _rows(found: dict[str, Any], state: str) -> list[tuple[str, str]]:
    def number(key: str, form: str) -> str:
        return "-" if found[key] is None else format(found[key], form)

    steps = f" of {found['steps']:,}" if found["steps"] else ""
    return [
        ("run", found["run"]),
        ("state", state),
        ("step", number("step", ",") + steps),
        ("loss", number("loss", ".4f")),
        ("tokens", number("tokens", ",")),
        ("tokens/s", number("tokens_per_second", ",.0f")),
        ("checkpoint", found["checkpoint"] or "-"),
    ]
