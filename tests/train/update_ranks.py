"""Forked ranks train each case with its update and with the plain one; prints {case: what differs} as JSON.

`python update_ranks.py FOLDER [--all]`. Everything is compared bit for bit: losses, norms, learning rates, weights and
optimizer state of the last checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # what optimizers and checkpoint import at their first call: here once, not once per rank

torch.set_num_threads(1)

from safetensors.torch import load_file  # noqa: E402
from small_runs import records  # noqa: E402

from forgather_dsl import (  # noqa: E402
    BF16,
    FP32,
    AdamW,
    AfterBackward,
    Bytes,
    Experiment,
    FullRecompute,
    GPipe,
    InBackward,
    Interleaved,
    Llama,
    Muon,
    OneFOneB,
    OnHost,
    Pipeline,
    TextFiles,
    ZeroBubbleH1,
    ZeroBubbleV,
    patch,
)
from forgather_dsl.dsl import check, replace  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.train import directory  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import run_session  # noqa: E402

SECONDS = 900
ONLY = os.environ.get("ONLY", "")  # part of the names of cases to run alone


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, log_every, eval_every, save_every = 16, 4, 1, 3, 1, 2, 1
    sampling, loggers, isolate_documents, clip_norm = None, (), True, None
    tokenizer = Bytes()
    model = patch(Llama, dim=16, num_layers=8, num_heads=2, dropout=0.1)


def pipe(stages, schedule, **more):
    return {"parallel": Pipeline(stages=stages, schedule=schedule, **more)}


TIED = {"model": patch(Llama, tie_embeddings=True)}
ONE = {"microbatch_size": 4}
IN, LIMITED = InBackward(), InBackward(clip_rms=0.5)
CLIPPED, SUMMED = {"clip_norm": 0.5}, {"precision": BF16(gradients="fp32")}
AFTER, DEVICE, HOST = AfterBackward(), OnHost(), OnHost(gradients="host")
CASES = {  # name: (ranks, changes, the update, the plain one)
    "in 1": (1, {**ONE, "recompute": FullRecompute()}, IN, AfterBackward()),
    "in bf16 limited 1": (1, {**ONE, "precision": BF16()}, LIMITED, AfterBackward(clip_rms=0.5)),
    "in accumulated tied muon 1": (1, {**TIED, "optimizer": Muon()}, IN, AfterBackward()),
    "in tied 1F1B 2": (2, {**TIED, **pipe(2, OneFOneB()), "recompute": FullRecompute()}, LIMITED, AfterBackward(clip_rms=0.5)),
    "in ZB-V spread 2": (2, pipe(2, ZeroBubbleV(), spread_head=True), IN, AfterBackward()),
    "in ZB-H1 bf16 2": (2, {**pipe(2, ZeroBubbleH1()), "precision": BF16(), "recompute": FullRecompute()}, IN, AfterBackward()),
    "in GPipe tied 4": (4, {**TIED, **pipe(4, GPipe())}, IN, AfterBackward()),
    "in interleaved 4": (4, {**pipe(4, Interleaved()), "recompute": FullRecompute()}, IN, AfterBackward()),
    "in ZB-V 4": (4, {**pipe(4, ZeroBubbleV()), **TIED}, IN, AfterBackward()),
    "device clipped muon 1": (1, {**CLIPPED, "optimizer": Muon()}, DEVICE, AFTER),
    "device bf16 clipped tied 2": (2, {**CLIPPED, **TIED, "precision": BF16(), **pipe(2, OneFOneB())}, DEVICE, AFTER),
    "device replicas 2": (2, {**CLIPPED, **pipe(1, OneFOneB(), replicas=2)}, DEVICE, AFTER),
    "device torch engine 2": (2, {**CLIPPED, **pipe(2, OneFOneB(), engine="torch")}, DEVICE, AFTER),
    "host one microbatch fp32 1": (1, {**CLIPPED, **ONE}, HOST, AFTER),
    "host tied limited 1": (1, {**SUMMED, **TIED}, OnHost(gradients="host", clip_rms=0.5), AfterBackward(clip_rms=0.5)),
    "host clipped 1F1B 2": (2, {**CLIPPED, **SUMMED, **pipe(2, OneFOneB()), "recompute": FullRecompute()}, HOST, AFTER),
    "host ZB-V spread 2": (2, {**CLIPPED, **SUMMED, **pipe(2, ZeroBubbleV(), spread_head=True)}, HOST, AFTER),
    "host ZB-H1 tied 4": (4, {**CLIPPED, **SUMMED, **TIED, **pipe(4, ZeroBubbleH1())}, HOST, AFTER),
    "host interleaved 4": (4, {**CLIPPED, **SUMMED, **pipe(4, Interleaved())}, HOST, AFTER),
}  # fmt: skip
QUICK = ("device bf16 clipped tied 2", "host ZB-V spread 2")


def experiment(name, corpus, update):
    small = Small(data=TextFiles(paths=corpus, held_out=0.2), optimizer=AdamW(lr=1e-2), precision=FP32())
    return replace(small, **{**CASES[name][1], "update": update})


def run(name, folder, kind, update, rank):
    """Train one case on this rank; rank 0 makes the run directory."""
    out = str(Path(folder, name.replace(" ", "-"), kind))
    one = experiment(name, f"{folder}/corpus", update)
    check(one)
    ready = Path(out, "ready")
    if rank == 0:
        directory.write(one, out, None, None)
        ready.touch()
    while not ready.exists():
        time.sleep(0.01)
    os.environ[STORE] = f"{out}/store"
    run_session(one, out, prepare(one), resume="never", changes=[])
    return out


def tensors(path):
    """Every tensor of every checkpoint that was kept, by step: those that were written while an update went on too."""
    found = {}
    for folder in sorted(Path(path, "checkpoints").glob("step-????????")):
        for file in folder.glob("*.safetensors"):
            found |= {f"{folder.name} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def differences(expected, found):
    wrong = []
    for key in ("loss", "eval_loss"):
        sides = [records(path, key) for path in (expected, found)]
        for a, b in zip(*sides, strict=True):
            wrong += [
                f"step {a['step']}: {k} {a.get(k)} became {b.get(k)}"
                for k in ("step", "loss", "eval_loss", "grad_norm", "lr", "tokens")
                if repr(a.get(k)) != repr(b.get(k))
            ]
    one, other = tensors(expected), tensors(found)
    wrong += [f"{name} differs" for name in one if not torch.equal(one[name], other[name])]
    return wrong[:8] if one.keys() == other.keys() and len(one) > 100 else [*wrong[:8], "other tensors"]


def rank_main(rank, ranks, folder):
    signal.alarm(SECONDS)  # a deadlock ends the rank
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    found = {}
    for name, (size, _, update, plain) in CASES.items():
        if size == ranks and (name in QUICK or "--all" in sys.argv) and ONLY in name:
            paths = [run(name, folder, kind, how, rank) for kind, how in (("plain", plain), ("found", update))]
            found[name] = differences(*paths) if rank == 0 else []
    Path(folder, f"{ranks}-{rank}.json").write_text(json.dumps(found))


def forked(ranks, folder):
    """Exit codes of so many ranks."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(2, 1)  # banners
                rank_main(rank, ranks, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(folder):
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    Path(folder, "corpus").mkdir()
    for number in range(30):
        lines = [f"def function_{number}_{i}(x, y={i}):\n    return x * {i} + y\n" for i in range(12)]
        Path(folder, "corpus", f"file{number}.txt").write_text("\n".join(lines))
    prepare(experiment(next(iter(CASES)), f"{folder}/corpus", AfterBackward()))
    codes, cases = [], {}
    for ranks in (1, 2, 4):
        codes += forked(ranks, folder)
        if any(codes):
            break
        for rank in range(ranks):
            for name, wrong in json.loads(Path(folder, f"{ranks}-{rank}.json").read_text()).items():
                cases[name] = cases.get(name, []) + wrong
    print(json.dumps({"codes": codes, "cases": cases}))


if __name__ == "__main__":
    main(sys.argv[1])
