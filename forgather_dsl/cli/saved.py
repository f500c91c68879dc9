"""`checkpoints`: what a run has saved, why each stays, and whether it is whole. No torch; nothing of the run is executed."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any

import typer

from ..errors import UserError
from .arguments import Debug, Json, complete_target, end
from .output import print_json, print_table


def checkpoints_verb(
    run: Annotated[str, typer.Argument(help="a run directory", autocompletion=complete_target)],
    verify: Annotated[
        bool, typer.Option("--verify", help="compare the hash of every file; exit code 4 if one is damaged")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List a run's checkpoints, and verify them."""

    def work() -> None:
        found = rows(run, verify)
        if json:
            print_json({"run": run, "checkpoints": found})
        elif not found:
            print(f"{run} has no checkpoint yet; it saves at its end, and every save_every steps")
        else:
            print_table(("step", "size", "tokens", "eval loss", "age", "path", "kept"), [_told(row) for row in found])
        damaged = [row["path"] for row in found if row["problem"]]
        if verify and damaged:
            raise UserError(
                f"{len(damaged)} of {len(found)} checkpoints cannot be used: {', '.join(damaged)}", exit_code=4
            )

    end(work, debug)


def rows(run: str, verify: bool) -> list[dict[str, Any]]:
    """Of each checkpoint, newest first, then what was set aside: step, bytes, tokens, eval_loss, seconds since, path, why it
    stays, what is wrong. Raises UserError when `run` is no run directory."""
    from ..runs.run import Run
    from ..train.checkpoint import folder, retention

    about = Run(run).experiment.checkpoints
    keep = retention.Keep(about.keep_last, about.keep_every, about.keep_best)
    where = os.path.join(run, "checkpoints")
    why = retention.reasons(retention.complete(where), keep)
    found = [_row(path, why.get(path, []), verify) for path in folder.listed(where)]
    return found + [{**_row(path, [], False), "problem": "set aside as damaged"} for path in folder.aside(where)]


def _row(path: str, why: list[str], verify: bool) -> dict[str, Any]:
    from ..train.checkpoint import folder
    from ..train.checkpoint.verify import contents, problem

    at = folder.place(path.partition(".bad")[0])
    row = {"step": at[0] if at else None, "path": path, "kept": why}
    row |= {"bytes": _bytes_in(path), "tokens": None, "eval_loss": None, "age_seconds": None, "problem": None}
    try:
        manifest = contents(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {**row, "problem": problem(path) or "cannot be read"}
    tokens = manifest["state"].get("tokens")
    row |= {"tokens": tokens if isinstance(tokens, int) else None, "eval_loss": manifest.get("eval_loss")}
    row["age_seconds"] = max(0.0, time.time() - manifest["saved"])
    return {**row, "problem": problem(path) if verify else None}


def _bytes_in(path: str) -> int:
    with os.scandir(path) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _told(row: dict[str, Any]) -> tuple[str, ...]:
    loss, tokens = row["eval_loss"], row["tokens"]
    return (
        str(row["step"]),
        _size(row["bytes"]),
        "" if tokens is None else f"{tokens:,}",
        "" if loss is None else f"{loss:.4f}",
        "" if row["age_seconds"] is None else _age(row["age_seconds"]),
        row["path"],
        row["problem"] or ", ".join(row["kept"]) or "goes with the next save",
    )


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _age(seconds: float) -> str:
    for limit, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= limit:
            return f"{seconds / limit:.0f} {unit}"
    return f"{seconds:.0f} s"
