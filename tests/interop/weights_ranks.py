"""Models of transformers are imported, trained for a step on two stages, exported; prints {case: [what is wrong]} as JSON.

`python weights_ranks.py FOLDER`. Every case runs on one process too: the same bits have to come out.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import torch
import torch._dynamo  # what optimizers import at their first call: here once, not once per rank

torch.set_num_threads(1)

import transformers  # noqa: E402
from forked_ranks import forked, write_corpus  # noqa: E402
from hf_folders import write_model  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from forgather_dsl import (  # noqa: E402
    BF16,
    FP32,
    AdamW,
    Bytes,
    DualPipeV,
    Experiment,
    GPipe,
    Interleaved,
    OneFOneB,
    Pipeline,
    Single,
    TextFiles,
    ZeroBubbleH1,
    ZeroBubbleV,
    replace,
)
from forgather_dsl.dsl import load  # noqa: E402
from forgather_dsl.interop.export import export  # noqa: E402
from forgather_dsl.interop.families import from_config  # noqa: E402
from forgather_dsl.interop.folder import Folder  # noqa: E402
from forgather_dsl.interop.incoming import Vocabulary, import_folder  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.train import directory  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import Session, run_session  # noqa: E402


class Short(Experiment):
    """One step of everything."""

    seq_len, batch_size, microbatch_size, steps, log_every = 16, 4, 1, 1, 1
    sampling, loggers, eval_data, precision, optimizer, tokenizer = None, (), None, FP32(), AdamW(lr=1e-3), Bytes()


class Case:
    """A family, what its folder holds, how it is trained, and whether it is imported first or read by the ranks."""

    def __init__(
        self, family: str, tied: bool, schedule: Any, imported: bool, dtype: Any = torch.float32, **changes: Any
    ) -> None:
        self.family, self.tied, self.imported, self.dtype = family, tied, imported, dtype
        self.parallel = Pipeline(stages=2, schedule=schedule, spread_head=changes.pop("spread_head", False))
        self.changes = changes


CASES = {
    "llama 1F1B": Case("Llama", False, OneFOneB(), True),
    "llama tied ZB-V": Case("Llama", True, ZeroBubbleV(), False),
    "mistral GPipe": Case("Mistral", False, GPipe(), False),
    "mistral tied 1F1B, bfloat16 stored": Case("Mistral", True, OneFOneB(), True, torch.bfloat16),
    "qwen2 Interleaved": Case("Qwen2", False, Interleaved(), True),
    "qwen2 tied DualPipeV, float16 stored": Case("Qwen2", True, DualPipeV(), False, torch.float16),
    "qwen3 spread head": Case("Qwen3", False, OneFOneB(), False, spread_head=True),
    "qwen3 tied ZB-H1 in bfloat16": Case("Qwen3", True, ZeroBubbleH1(), False, precision=BF16()),
}


def experiment(name: str, single: bool = False) -> Experiment:
    """The class that was written by the import, or one of our own that names the folder."""
    case = CASES[name]
    changes = {**case.changes, "parallel": Single() if single else case.parallel}
    if case.imported:
        changes |= {key: getattr(Short(), key) for key in ("seq_len", "batch_size", "microbatch_size", "steps")}
        changes |= {
            "sampling": None,
            "loggers": (),
            "eval_data": None,
            "precision": FP32(),
            "optimizer": AdamW(lr=1e-3),
        }
        base: Any = load(f"{out(name)}-imported/experiment.py")()  # type: ignore[operator]
    else:
        hf = f"{out(name)}-hf"
        base = Short(model=from_config(json.loads(Path(hf, "config.json").read_text())), init_from=hf)
    return replace(base, data=TextFiles(paths="corpus", held_out=0.2), **changes)


FROM_RUNS = {  # what init_from names, and the run whose weights that is
    "llama-1F1B-run": Case("Llama", False, ZeroBubbleV(), False, spread_head=False),
    "llama-tied-ZB-V-run/checkpoints/step-00000001": Case("Llama", True, Interleaved(), False),
    "qwen3-spread-head-run": Case("Qwen3", False, OneFOneB(), False, spread_head=True, precision=BF16()),
}


def begin_with_runs(rank: int) -> int:
    """Two ranks begin with what another layout has trained, optimizer state and all; how many parameters are not taken."""
    wrong = 0
    for number, (source, case) in enumerate(FROM_RUNS.items()):
        run = source.partition("/")[0]
        one = Short(model=directory.read_config(run).model, init_from=source, parallel=case.parallel, **case.changes)
        one = replace(one, data=TextFiles(paths="corpus", held_out=0.2))
        if rank == 0:
            directory.write(one, f"from{number}", None, None)
            Path(f"from{number}", "ready").touch()
        while not Path(f"from{number}", "ready").exists():
            time.sleep(0.01)
        os.environ[STORE] = os.path.abspath(f"from{number}/store")
        begin_with = Session.begin_with

        def beginning(session: Session, path: str, run: str = run, begin_with: Any = begin_with) -> None:
            nonlocal wrong
            begin_with(session, path)
            wrong += len(not_taken(session, f"{run}-hf")) + (session.step != 0)

        Session.begin_with = beginning
        run_session(one, f"from{number}", prepare(one), resume="auto", changes=[])
        Session.begin_with = begin_with
    return wrong


def out(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


def train(name: str, rank: int, ranks: int) -> None:
    """One step; what a rank holds after it has begun is compared with the folder."""
    single = ranks == 1
    path = f"{out(name)}-{'one' if single else 'run'}"
    one = experiment(name, single)
    if rank == 0:
        directory.write(one, path, None, None)
        Path(path, "ready").touch()
    while not Path(path, "ready").exists():
        time.sleep(0.01)
    os.environ[STORE] = os.path.abspath(f"{path}/store")
    begin_with, tensors, wrong = Session.begin_with, Folder.tensors, []

    def beginning(session: Session, source: str) -> None:
        taken: set[str] = set()

        def reading(self: Folder, names: Any, slices: Any) -> Any:
            for key, tensor in tensors(self, names, slices):
                taken.add(key)
                yield key, tensor

        Folder.tensors = reading
        begin_with(session, source)
        Folder.tensors = tensors
        if not CASES[name].imported and taken != set(session.parameters):
            wrong.append(f"rank {rank} read {sorted(taken ^ set(session.parameters))}")
        wrong.extend(not_taken(session, f"{out(name)}-hf"))

    Session.begin_with = beginning
    try:
        run_session(one, path, prepare(one), resume="auto", changes=[])
    finally:
        Session.begin_with = begin_with
    Path(path, f"begun{rank}.json").write_text(json.dumps(wrong))


def not_taken(session: Session, folder: str) -> list[str]:
    """Parameters of this rank that are not what the folder holds."""
    stored: dict[str, torch.Tensor] = {}
    for file in Path(folder).glob("*.safetensors"):
        stored |= load_file(file)
    masters = dict(session.optimizer.masters())
    shard, wrong = session.pipeline.shard, []
    for key, parameter in session.parameters.items():
        expected = stored[key].float()
        if shard is not None and key == shard.name:
            expected = expected[shard.rows.start : shard.rows.stop]
        if not torch.equal(masters.get(key, parameter.detach()), expected):
            wrong.append(f"{key} is not what the folder holds")
    return wrong if session.parameters else ["no parameters"]


def problems(name: str) -> list[str]:
    """Of a case that was trained: bits of one process, and logits after the way out."""
    wrong: list[str] = []
    for path in (f"{out(name)}-run", f"{out(name)}-one"):
        files = list(Path(path).glob("begun*.json"))
        wrong += [f"{path}: {len(files)} ranks began"] if len(files) != (2 if path.endswith("run") else 1) else []
        wrong += [f"{path}: {text}" for file in files for text in json.loads(file.read_text())]
        done = export(path, "hf", f"{path}-hf")
        if "bit for bit" not in done.said[0]:
            wrong.append(done.said[0])
    one, two = (load_file(f"{out(name)}-{which}-hf/model.safetensors") for which in ("one", "run"))
    if CASES[name].parallel.spread_head:  # another order of sums
        wrong += [f"{key} differs" for key in one if (one[key] - two[key]).abs().max() > 1e-5]
    else:
        wrong += [f"{key} differs from one process" for key in one | two if not torch.equal(one[key], two[key])]
    begun = load_file(next(Path(f"{out(name)}-hf").glob("*.safetensors")))
    wrong += [
        f"{key} was not trained" for key, tensor in begun.items() if torch.equal(tensor.float(), two[key].float())
    ]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(f"{out(name)}-run-hf")
    if not theirs(torch.tensor([[1, 2, 3]])).logits.isfinite().all():
        wrong.append("logits are not finite")
    return wrong


def main(folder: str) -> None:
    os.chdir(folder)
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    transformers.logging.disable_progress_bar()
    write_corpus(folder)
    checked = []
    for name, case in CASES.items():
        write_model(Path(f"{out(name)}-hf"), case.family, case.tied, case.dtype)
        if case.imported:
            words = Vocabulary(tokenizer="bytes")
            checked += import_folder(f"{out(name)}-hf", f"{out(name)}-imported", words, name="It", check=True).said
        prepare(experiment(name))
    codes = []
    for ranks in (1, 2):
        codes += forked(ranks, lambda rank, ranks=ranks: sum(train(name, rank, ranks) or 0 for name in CASES))
    wrong = {name: problems(name) for name in CASES} if not any(codes) else {}
    codes += forked(2, begin_with_runs)
    print(json.dumps({"codes": codes, "checked": checked, "cases": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
