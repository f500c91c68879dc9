"""`import`: a Hugging Face folder as a run directory to train on from."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ..interop.place import NEW_ROWS
from .arguments import Debug, Json, end
from .output import print_json, say

HELP = """Make a run directory of a Hugging Face folder: Llama, Mistral, Qwen 2 and Qwen 3 in safetensors.

OUT gets the weights as a checkpoint of step 0, the tokenizer, and experiment.py with a class of that very model, which
begins with these weights: run it, or subclass it. `generate OUT` and `export OUT` work at once.

Without a copy: write init_from = "HF_DIR" into an experiment of your own.

Names, shapes and number formats are verified before anything is written; OUT must not exist. Rows of the vocabulary that
stay keep their bits; new ones are the mean of the tokens' rows."""


def import_verb(
    source: Annotated[str, typer.Argument(metavar="HF_DIR", help="a folder with config.json and safetensors")],
    out: Annotated[str, typer.Option("--out", metavar="OUT", help="a new folder")],
    check: Annotated[bool, typer.Option("--check", help="compare logits with transformers")] = False,
    name: Annotated[str | None, typer.Option("--name", help="of the class; default: that of the folder")] = None,
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", min=1, help="rows of embedding and head")] = None,
    multiple: Annotated[int, typer.Option("--multiple-of", min=1, help="round the rows up to a multiple")] = 1,
    drop: Annotated[bool, typer.Option("--drop-rows", help="rows that no token has may go")] = False,
    add: Annotated[
        list[str] | None, typer.Option("--add-token", metavar="TOKEN", help="to the tokenizer; repeatable")
    ] = None,
    special: Annotated[
        list[str] | None, typer.Option("--add-special-token", metavar="TOKEN", help="one that readers do not see")
    ] = None,
    new_rows: Annotated[
        str,
        typer.Option("--new-rows", metavar="|".join(NEW_ROWS), help="their values", autocompletion=lambda: NEW_ROWS),
    ] = "mean",
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="a folder, a tokenizer.json, or bytes; default: the model's own")
    ] = None,
    eos: Annotated[str | None, typer.Option("--eos", metavar="TOKEN", help="which token ends a text")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Make a run directory of a Hugging Face folder."""

    def work() -> None:
        from ..interop.incoming import Vocabulary, import_folder

        rows = Vocabulary(vocab_size, multiple, drop, new_rows, add or (), special or (), tokenizer, eos)
        done = import_folder(source, out, rows, name=name, check=check, command=sys.argv)
        if json:
            print_json(done._asdict())
            return
        for line in done.said:
            say(line)
        say(f"{done.family}: {done.tensors} tensors, {done.bytes / 2**20:.1f} MiB -> {done.path}")
        say(f"next: run {done.target}")

    end(work, debug)


import_verb.__doc__ = HELP
