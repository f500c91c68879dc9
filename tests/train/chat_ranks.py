"""Chat data in runs: one process, two stages, a run in two halves; prints what was seen as JSON. `python chat_ranks.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import torch
import torch._dynamo  # what optimizers import at their first call: here once, not once per rank

torch.set_num_threads(1)

from forked_ranks import forked  # noqa: E402
from small_runs import losses, records  # noqa: E402

from forgather_dsl import (  # noqa: E402
    FP32,
    AdamW,
    Bytes,
    Chat,
    Constant,
    Experiment,
    Llama,
    OneFOneB,
    Pipeline,
    Sampling,
    patch,
    replace,
)
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.runs.run import Run  # noqa: E402
from forgather_dsl.train import directory  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import run_session  # noqa: E402


class Packed(Experiment):
    """Four steps an epoch."""

    seq_len, batch_size, microbatch_size, log_every = 96, 4, 2, 1
    epochs = 1.5
    data = Chat(paths="chats.jsonl", template="plain", held_out=0.2)
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=2, num_heads=2)
    precision, optimizer, lr_schedule, loggers = FP32(), AdamW(lr=1e-2), Constant(), ()
    sampling = Sampling(prompt="3 plus 3?", max_new_tokens=4)


TWO = Pipeline(stages=2, schedule=OneFOneB())
RUNS: dict[str, list[Packed]] = {
    "one": [Packed()],
    "two": [Packed(parallel=TWO)],
    "halves": [Packed(epochs=0.6), Packed(parallel=TWO)],
    "mixed": [Packed(isolate_documents=False)],
}


def train(name: str, experiment: Any, rank: int) -> int:
    """One start of a run."""
    os.environ[STORE] = os.path.abspath(f"{name}/store{experiment.epochs}")
    run_session(experiment, name, prepare(experiment), resume="auto", changes=[])
    return 0


def main(folder: str) -> None:
    os.chdir(folder)
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    pairs = [(a, b) for a in range(9) for b in range(9)]
    talks = [[message for a, b in pairs[i : i + 1 + i % 2] for message in asked(a, b)] for i in range(0, len(pairs), 2)]
    Path("chats.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    codes = []
    for name, starts in RUNS.items():
        for experiment in starts:
            directory.write(experiment, name, None, None)
            ranks = 2 if isinstance(experiment.parallel, Pipeline) else 1
            codes += forked(ranks, lambda rank, name=name, e=experiment: train(name, e, rank))
    found = {name: {"losses": losses(name), "eval": records(name, "eval_loss")[-1]} for name in RUNS}
    answer = Run("one").generate("3 plus 3?", max_new_tokens=4, temperature=0.0, chat=True)
    samples = [record["sample"] for record in records("two", "sample")]
    data = replace(Packed()).isolate_documents, Packed(epochs=3).epochs
    print(json.dumps({"codes": codes, "runs": found, "answer": answer, "samples": samples, "defaults": data}))


def asked(a: int, b: int) -> list[dict[str, str]]:
    """A question and its answer."""
    return [{"role": "user", "content": f"{a} plus {b}?"}, {"role": "assistant", "content": f"{a + b}"}]


if __name__ == "__main__":
    main(sys.argv[1])
