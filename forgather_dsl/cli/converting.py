"""`convert`: weights from a checkpoint of ours to a Hugging Face folder, and from one to a checkpoint."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .arguments import Debug, Json, Settings, complete_target, end
from .output import print_json, say

if TYPE_CHECKING:
    from ..interop.convert import Converted

KINDS, DTYPES = ("hf", "checkpoint"), ("float32", "bfloat16", "float16")
HELP = """Move weights to and from Hugging Face folders.

Of Llama, Mistral, Qwen 2 and Qwen 3.

convert RUN|CHECKPOINT --to hf --out DIR: writes config.json and safetensors, which transformers loads.

convert HF_DIR --to checkpoint --target file.py:Class --out RUN_DIR: writes a run directory whose checkpoint of step 0 holds
the weights. Train on with `run file.py:Class --out RUN_DIR`, or from another one with `run ... --resume CHECKPOINT`.

All names, shapes and hashes are verified before anything is written; --out must not exist."""


def convert_verb(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="a run, a checkpoint, or a folder of safetensors", autocompletion=complete_target
        ),
    ],
    to: Annotated[str, typer.Option("--to", metavar="|".join(KINDS), autocompletion=lambda: KINDS)],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder")],
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            help="the experiment that the weights are of; of a run it is known",
            autocompletion=complete_target,
        ),
    ] = None,
    set_: Settings = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="|".join(DTYPES), help="with --to hf; default: as stored")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Move weights to and from Hugging Face folders."""

    def work() -> None:
        done, next_ = _convert(source, to, out, target, set_ or [], dtype)
        if json:
            print_json(done._asdict())
        else:
            say(f"{done.family}: {done.tensors} tensors, {done.bytes / 2**20:.1f} MiB -> {done.path}")
            say(f"next: {next_}")

    end(work, debug)


convert_verb.__doc__ = HELP


def _convert(
    source: str, to: str, out: str, target: str | None, settings: list[str], dtype: str | None
) -> tuple[Converted, str]:
    """What was written, and what can be done with it."""
    if to not in KINDS:
        raise UserError(f"--to {to!r}: write one of {', '.join(KINDS)}")
    if dtype is not None and (dtype not in DTYPES or to != "hf"):
        raise UserError(f"--dtype {dtype}: write one of {', '.join(DTYPES)}, with --to hf")
    if to == "checkpoint" and target is None:
        raise UserError("--to checkpoint needs --target file.py:Class: the experiment that will train these weights")
    if settings and target is None:
        raise UserError("--set changes what --target names; add --target file.py:Class")
    from .targets import find_experiment

    experiment = find_experiment(target, settings) if target is not None else None
    from ..interop.convert import from_folder, to_folder

    if experiment is not None and to == "checkpoint":
        done = from_folder(source, experiment, out, str(target), sys.argv)
        return done, f"run {target} --out {out}"
    return to_folder(source, out, experiment, dtype), f"transformers.AutoModelForCausalLM.from_pretrained({out!r})"
