"""Forked ranks train each case twice, agreeing after every step and post-validated; prints {case: [what differs]} as JSON.

`python validated_ranks.py FOLDER [--all]`. "undone" is, for each rank, whether it had to take each wrong update back, or had
waited, since its own part of the norm told it.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
import torch._dynamo  # what optimizers and checkpoint import at their first call: here once, not once per rank

torch.set_num_threads(1)

from small_runs import records, weights  # noqa: E402

from forgather_dsl import (  # noqa: E402
    BF16,
    AdamW,
    Bytes,
    Experiment,
    FullRecompute,
    Guard,
    Llama,
    Loss,
    Muon,
    OneFOneB,
    Pipeline,
    TextFiles,
    ZeroBubbleH2,
    ZeroBubbleV,
    patch,
)
from forgather_dsl.dsl import replace  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.train import directory, post_validation  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import run_session  # noqa: E402

SECONDS = 900


class Sometimes(Loss["small_runs.SometimesInfinite"]):
    """Cross entropy that is infinite for some batches."""


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, log_every, eval_every = 16, 8, 1, 8, 1, 5
    sampling, loggers, isolate_documents, guard = None, (), True, Guard(max_skipped=8)
    tokenizer = Bytes()
    model = patch(Llama, dim=16, num_layers=8, num_heads=2, dropout=0.1)


NEVER, ALWAYS, MIXED = 1e9, 1e-6, 0.0  # MIXED: the median of the norms of the run in which nothing is clipped
TIED = patch(Llama, tie_embeddings=True)
CASES = {  # name: (ranks, changes)
    "never 1F1B 2": (2, {"clip_norm": NEVER, "parallel": Pipeline(stages=2, schedule=OneFOneB())}),
    "always 1F1B 2": (2, {"clip_norm": ALWAYS, "parallel": Pipeline(stages=2, schedule=OneFOneB())}),
    "mixed tied 1F1B 2": (2, {"clip_norm": MIXED, "model": TIED, "parallel": Pipeline(stages=2), "optimizer": Muon()}),
    "infinite ZB-V 2": (2, {"clip_norm": MIXED, "loss": Sometimes(), "parallel": Pipeline(stages=2, schedule=ZeroBubbleV())}),
    "mixed bf16 ZB-H2 2": (2, {"clip_norm": MIXED, "precision": BF16(), "parallel": Pipeline(stages=2, schedule=ZeroBubbleH2())}),
    "mixed ZB-H2 4": (4, {"clip_norm": MIXED, "recompute": FullRecompute(), "parallel": Pipeline(stages=4, schedule=ZeroBubbleH2())}),
    "mixed tied 1F1B 4": (4, {"clip_norm": MIXED, "model": TIED, "parallel": Pipeline(stages=4, schedule=OneFOneB())}),
    "infinite ZB-V 4": (4, {"clip_norm": None, "loss": Sometimes(), "parallel": Pipeline(stages=4, schedule=ZeroBubbleV())}),
    "mixed tied 1F1B 2x2": (4, {"clip_norm": MIXED, "model": TIED, "parallel": Pipeline(stages=2, schedule=OneFOneB(), replicas=2)}),
    "infinite ZB-H2 2x2": (4, {"clip_norm": MIXED, "loss": Sometimes(), "parallel": Pipeline(stages=2, schedule=ZeroBubbleH2(), replicas=2)}),
}  # fmt: skip
QUICK = ("mixed tied 1F1B 2", "infinite ZB-V 4")


def experiment(name, corpus, clip_norm, post_validation):
    changes = {**CASES[name][1], "clip_norm": clip_norm}
    changes["parallel"] = replace(changes["parallel"], post_validation=post_validation)
    return replace(Small(data=TextFiles(paths=corpus, held_out=0.2), optimizer=AdamW()), **changes)


def run(name, folder, kind, clip_norm, post_validation, rank):
    """Train one case on this rank; the run directory was made by the parent, or by rank 0 where a norm had to be known."""
    out = str(Path(folder, name.replace(" ", "-"), kind))
    one = experiment(name, f"{folder}/corpus", clip_norm, post_validation)
    if rank == 0:
        directory.write(one, out, None, None)
    ready = Path(out, f"ready{clip_norm}")
    if rank == 0:
        ready.touch()
    while not ready.exists():
        time.sleep(0.01)
    os.environ[STORE] = f"{out}/store"
    run_session(one, out, prepare(one), resume="never", changes=[])
    return out


def differences(expected, found):
    wrong = []
    for key in ("loss", "eval_loss"):
        sides = [records(path, key) for path in (expected, found)]
        for a, b in zip(*sides, strict=True):
            wrong += [
                f"step {a['step']}: {k} {a.get(k)} became {b.get(k)}"
                for k in ("step", "loss", "eval_loss", "grad_norm", "lr", "tokens", "skipped")
                if repr(a.get(k)) != repr(b.get(k))  # in full; and nan is nan
            ]
    one, other = weights(expected, everything=True), weights(found, everything=True)
    wrong += [f"{name} differs" for name in one if not torch.equal(one[name], other[name])]
    return wrong if one.keys() == other.keys() else [*wrong, "other tensors"]


def rank_main(rank, ranks, folder):
    signal.alarm(SECONDS)  # a deadlock ends the rank
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
    undone, undo = [], post_validation.Update.undo

    def counted(update):
        undone.append(update.backup is not None)
        undo(update)

    post_validation.Update.undo = counted
    found = {}
    for name, (size, changes) in CASES.items():
        if size != ranks or not (name in QUICK or "--all" in sys.argv):
            continue
        limit = changes["clip_norm"]
        if limit == MIXED:
            norms = [r["grad_norm"] for r in records(run(name, folder, "norms", NEVER, False, rank), "loss")]
            norms = sorted(filter(math.isfinite, norms))
            limit = norms[len(norms) // 2]
        undone.clear()
        paths = [run(name, folder, kind, limit, kind == "validated", rank) for kind in ("agreed", "validated")]
        found[name] = {"wrong": differences(*paths) if rank == 0 else [], "undone": list(undone)}
    Path(folder, f"{ranks}-{rank}.json").write_text(json.dumps(found))


def main(folder):
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    Path(folder, "corpus").mkdir()
    for number in range(30):
        lines = [f"def function_{number}_{i}(x, y={i}):\n    return x * {i} + y\n" for i in range(12)]
        Path(folder, "corpus", f"file{number}.txt").write_text("\n".join(lines))
    prepare(experiment(next(iter(CASES)), f"{folder}/corpus", 1.0, False))
    codes, cases = [], {}
    for ranks in (2, 4):
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
        codes += [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        if any(codes):
            break
        parts = [json.loads(Path(folder, f"{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
        for name in parts[0]:
            cases[name] = {
                "wrong": [w for part in parts for w in part[name]["wrong"]],
                "undone": [part[name]["undone"] for part in parts],
            }
    print(json.dumps({"codes": codes, "cases": cases}))


if __name__ == "__main__":
    main(sys.argv[1])
