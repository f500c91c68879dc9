"""`export`: weights of a run as a stock folder of transformers, as GGUF, or as source that stands alone."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UserError
from ..interop.place import DTYPES, KINDS
from .arguments import Debug, Json, Settings, complete_target, end
from .output import print_json, say

HELP = """Write the weights of a run for others to read.

--to hf: a folder that transformers, vLLM and others load without code of ours: Llama, Mistral, Qwen 2 and Qwen 3.

--to hf-remote: the same for any model, with the model's own code (trust_remote_code=True).

--to torch: model.py, which needs torch alone, and model.safetensors.

--to gguf: one file for llama.cpp.

The checkpoint is verified first, and what was written is compared with this run before it gets its name: nothing is left
of what is refused. --out must not exist."""
NEXT = {
    "hf": "transformers.AutoModelForCausalLM.from_pretrained({!r})",
    "hf-remote": "transformers.AutoModelForCausalLM.from_pretrained({!r}, trust_remote_code=True)",
    "torch": "cd {} && python -c 'import model; print(model.load_model())'",
    "gguf": "llama-cli -m {}/model.gguf",
}


def export_verb(
    source: Annotated[str, typer.Argument(metavar="RUN", help="a run or a checkpoint", autocompletion=complete_target)],
    to: Annotated[str, typer.Option("--to", metavar="|".join(KINDS), autocompletion=lambda: KINDS)],
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="a new folder")],
    target: Annotated[
        str | None,
        typer.Option(
            "--target", help="the experiment that was trained; of a run it is known", autocompletion=complete_target
        ),
    ] = None,
    set_: Settings = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", metavar="|".join(DTYPES), help="default: as stored", autocompletion=lambda: DTYPES),
    ] = None,
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="compare what was written with the run")] = True,
    tokenizer: Annotated[bool, typer.Option("--tokenizer/--no-tokenizer", help="write its files too")] = True,
    trust: Annotated[bool, typer.Option("--trust", help="import the user's own code that the run names")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Write the weights of a run for others to read."""

    def work() -> None:
        if to not in KINDS:
            raise UserError(f"--to {to!r}: write one of {', '.join(KINDS)}")
        if dtype is not None and dtype not in DTYPES:
            raise UserError(f"--dtype {dtype}: write one of {', '.join(DTYPES)}")
        if set_ and target is None:
            raise UserError("--set changes what --target names; add --target file.py:Class")
        from .targets import find_experiment

        experiment = find_experiment(target, set_ or [], trust) if target is not None else None
        from ..interop.export import export

        done = export(source, to, out, experiment, dtype, proof=proof, tokenizer=tokenizer, trust=trust)
        if json:
            print_json(done._asdict())
            return
        for line in done.said:
            say(line)
        say(f"{done.tensors} tensors, {done.bytes / 2**20:.1f} MiB -> {done.path}: {', '.join(done.files)}")
        say(f"next: {NEXT[to].format(out)}")

    end(work, debug)


export_verb.__doc__ = HELP
