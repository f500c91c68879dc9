"""Forked ranks train the same batches under every strategy, and hand checkpoints on; prints {case: what is wrong} as JSON.

`python strategy_ranks.py FOLDER [--all] [--measure]`. Sums over ranks are added in another order than one process adds its
microbatches, hence `BOUNDS`; `--measure` shows how far from them each case is.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import torch
import torch._dynamo  # what is imported at a first call: here once, not once per rank
import torch.distributed.fsdp
import torch.distributed.tensor
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

from forked_ranks import forked, write_corpus  # noqa: E402
from small_runs import PowerCut, records  # noqa: E402

from forgather_dsl import (  # noqa: E402
    BF16,
    DDP,
    FP32,
    FSDP2,
    AdamW,
    Bytes,
    ChunkedCrossEntropy,
    Experiment,
    FullRecompute,
    KeepAttention,
    Llama,
    NormsAndActivation,
    Pipeline,
    Sampling,
    Single,
    TextFiles,
    UserError,
    ZeroBubbleV,
    call,
    patch,
)
from forgather_dsl.dsl import build, replace  # noqa: E402
from forgather_dsl.models.init import initialise  # noqa: E402
from forgather_dsl.parallel.failures import PeerLost  # noqa: E402
from forgather_dsl.parallel.group import join, leave  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.parallel.reducing import Reducer  # noqa: E402
from forgather_dsl.parallel.sharded import Sharded  # noqa: E402
from forgather_dsl.specs.experiment import world_size  # noqa: E402
from forgather_dsl.train import directory  # noqa: E402
from forgather_dsl.train.batches import tensors as rows_of  # noqa: E402
from forgather_dsl.train.checkpoint import open_checkpoint  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import Session, run_session  # noqa: E402

STEPS = 4
NARROW = AdamW(
    eps=1e-4, states="8bit"
)  # a small gradient's sign, which rounding may turn, moves no weight by a whole step
WIDE = AdamW(eps=1e-4)
BOUNDS = {
    "fp32": {"loss": 1e-6, "grad_norm": 1e-5, "eval_loss": 1e-6, "weight": 5e-5},
    "bf16": {"loss": 1e-3, "grad_norm": 2e-2, "eval_loss": 1e-3, "weight": 2e-2},
}
"""Relative: of losses and norms, and of weights to the largest of each. One rounding is 6e-8 in fp32, 4e-3 in bfloat16."""


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, log_every, eval_every, save_every = 16, 8, 1, STEPS, 1, 2, 2
    sampling, loggers, isolate_documents = Sampling(max_new_tokens=3), (), True
    precision, optimizer, tokenizer = FP32(), WIDE, Bytes()
    model = patch(Llama, dim=16, num_layers=4, num_heads=2, dropout=0.1)


STRATEGIES = {
    "single": Single(),
    "ddp1": DDP(replicas=1),
    "ddp2": DDP(replicas=2),
    "ddp4": DDP(replicas=4),
    "fsdp2": FSDP2(shards=2),
    "fsdp2-kept": FSDP2(shards=2, reshard_after_forward=False),
    "fsdp2-host": FSDP2(shards=2, offload=True),
    "fsdp4": FSDP2(shards=4),
    "hsdp": FSDP2(shards=2, replicas=2),
    "pp2": Pipeline(stages=2, schedule=ZeroBubbleV()),
    "pp2x2": Pipeline(stages=2, replicas=2),
    "pp2x2-cut": Pipeline(stages=2, replicas=2, shard_replicas=True),
}
MODELS = {  # name: (changes, kind of bound)
    "plain": ({}, "fp32"),
    "tied": ({"model": patch(Llama, tie_embeddings=True), "recompute": FullRecompute()}, "fp32"),
    "chunked": ({"loss": ChunkedCrossEntropy(chunk=8), "recompute": KeepAttention()}, "fp32"),
    "bf16": ({"precision": BF16(), "recompute": NormsAndActivation(), "optimizer": NARROW}, "bf16"),
    "tiles": ({"recompute": FullRecompute(mlp_tiles=2), "microbatch_size": 2}, "fp32"),
}
QUICK = [("plain", name) for name in ("ddp2", "fsdp2")]
SLOW = [(model, name) for model in MODELS for name in STRATEGIES if name != "single"]
DYING = {"fsdp2": (Sharded, "through", 10), "ddp2": (Reducer, "begin", 3)}  # where, and at which call
MOVES = ("single", "fsdp4", "pp2", "fsdp2", "ddp2", "hsdp", "pp2x2-cut")


def experiment(folder, model, strategy, **more):
    changes = {**MODELS[model][0], "parallel": STRATEGIES[strategy], **more}
    return replace(Small(data=TextFiles(paths=f"{folder}/corpus", held_out=0.2)), **changes)


def on_ranks(one, out, work):
    """`work(rank)` on as many forked ranks as an experiment has; the run directory is made first."""
    os.makedirs(out, exist_ok=True)
    directory.write(one, out, None, None)

    def rank(number):
        os.environ[STORE] = f"{out}/store"
        return work(number) or 0

    codes = forked(world_size(one), rank)
    if os.path.exists(f"{out}/store"):
        os.unlink(f"{out}/store")
    return codes


def trained(folder, model, strategy, **more):
    out = f"{folder}/{model}-{strategy}"
    if not os.path.exists(f"{out}/metrics.jsonl"):
        one = experiment(folder, model, strategy, **more)
        codes = on_ranks(one, out, lambda _: run_session(one, out, prepare(one), resume="never", changes=[]))
        assert not any(codes), codes
    return out


def tensors(path):
    """Everything in a checkpoint, put together."""
    saved = open_checkpoint(path)
    return dict(saved.tensors(saved.stored()))


def newest(out):
    return str(sorted(Path(out, "checkpoints").glob("step-????????"))[-1])


def off(a, b):
    return abs(a - b) / abs(b)


def compared(folder, model, strategy):
    """With one process: the same numbers within the bounds; one replica the same bits."""
    paths = [trained(folder, model, name) for name in (strategy, "single")]
    worst = {}
    for key in ("loss", "grad_norm", "eval_loss"):
        mine, theirs = ([r[key] for r in records(path, key)] for path in paths)
        assert len(mine) == len(theirs) >= 2
        worst[key] = max(map(off, mine, theirs))
    mine, theirs = (tensors(newest(path)) for path in paths)
    if mine.keys() != theirs.keys():
        return [f"other tensors: {sorted(mine.keys() ^ theirs.keys())[:3]}"]
    names = [key for key in mine if key.startswith("weights/")]
    worst["weight"] = max(
        float((mine[k].float() - theirs[k].float()).abs().max() / theirs[k].float().abs().max()) for k in names
    )
    if "--measure" in sys.argv:
        print(f"{model} {strategy}", worst, file=sys.stderr)
    bounds = dict.fromkeys(worst, 0.0) if strategy == "ddp1" else BOUNDS[MODELS[model][1]]
    wrong = [f"{key} differs by {worst[key]:.1e}" for key, bound in bounds.items() if not worst[key] <= bound]
    counted = [records(path, "num_parameters")[0]["num_parameters"] for path in paths]
    return wrong + [f"{counted[0]} parameters instead of {counted[1]}"] * (counted[0] != counted[1])


def moved(folder, model, path, strategy):
    """What a strategy saves right after it has restored `path`; its folder."""
    out = f"{folder}/moved-{model}-{len(os.listdir(folder))}"
    one = experiment(folder, model, strategy)

    def restore_and_save(_):
        world = join("cpu")
        session = Session(one, out, prepare(one), world)
        session.restore(open_checkpoint(path))
        session.save(wait=True)
        leave(world)

    codes = on_ranks(one, out, restore_and_save)
    assert not any(codes), (strategy, codes)
    return newest(out)


def walk(names):
    """Every ordered pair of neighbours once: a way through the complete graph that ends where it begins."""
    left = {one: [other for other in names if other != one] for one in names}
    way, stack = [], [names[0]]
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            way.append(stack.pop())
    return way[::-1]


def moves(folder, model, names):
    """A checkpoint that goes from strategy to strategy keeps every bit of weights and optimizer states."""
    first = path = newest(trained(folder, model, names[0]))
    expected, wrong = tensors(first), []
    for before, after in pairwise(names):
        path = moved(folder, model, path, after)
        found = tensors(path)
        if found.keys() != expected.keys() or any(not torch.equal(found[k], expected[k]) for k in expected):
            wrong.append(f"{before} to {after}")
    return wrong


def resumed(folder, strategy):
    """Cut at step 3 and started again: the same bits as without."""
    straight, out = trained(folder, "plain", strategy), f"{folder}/resumed-{strategy}"
    for cut in (3, None):
        one = experiment(folder, "plain", strategy, loggers=(call("small_runs:PowerCut", at=cut),) if cut else ())

        def work(_, one=one, cut=cut):
            try:
                run_session(one, out, prepare(one), resume="auto", changes=[])
            except (UserError, RuntimeError):
                if cut is None:
                    raise

        codes = on_ranks(one, out, work)
        assert not any(codes), codes
    wrong = []
    for key in ("loss", "grad_norm", "eval_loss"):
        if [repr(r[key]) for r in records(straight, key)] != [repr(r[key]) for r in records(out, key)]:
            wrong.append(f"{key} differs")
    a, b = tensors(newest(straight)), tensors(newest(out))
    return wrong + [f"{key} differs" for key in a if not torch.equal(a[key], b[key])]


def deaths(folder, strategy):
    """A rank that is gone in the middle of a step ends the others, which say so."""
    one = experiment(folder, "plain", strategy, eval_every=None, save_every=None, sampling=None)
    out, kind, name, calls = f"{folder}/dies-{strategy}", *DYING[strategy]
    method, said = getattr(kind, name), f"{out}/said"

    def work(rank):
        count = iter(range(calls, 0, -1))

        def dying(own, *about):
            if next(count) == 1:
                os._exit(9)
            return method(own, *about)

        if rank == 1:
            setattr(kind, name, dying)
        try:
            run_session(one, out, prepare(one), resume="never", changes=[])
        except PeerLost as lost:
            Path(said).write_text(str(lost))
            return 4

    codes = on_ranks(one, out, work)
    return [] if codes == [4, 9] and Path(said).read_text().startswith("rank 0 lost another") else [f"{codes}"]


def torchs_own(folder):
    """The sums of gradients of torch's DistributedDataParallel, on the same batch and weights, within rounding."""
    one = experiment(folder, "plain", "ddp2")
    one = replace(one, model=replace(one.model, dropout=0.0))
    out = f"{folder}/torchs"

    def work(rank):
        world = join("cpu")
        session = Session(one, out, prepare(one), world)
        batch = session.loader.next_batch()
        tokens, targets, documents = rows_of(batch)
        session.reducer.begin()
        session.pipeline.step(tokens, targets, documents, session.loss_fn, 0, batch.num_valid)
        session.reducer.finish()
        model = build(one.model)
        initialise(model, one.seed)
        parallel = DistributedDataParallel(model)
        for k in range(len(tokens)):
            with nullcontext() if k == len(tokens) - 1 else parallel.no_sync():
                logits = parallel(tokens[k : k + 1], documents[k : k + 1])
                loss = session.loss_fn(logits, targets[k : k + 1])
                (loss * world.size / batch.num_valid).backward()  # torch takes the mean of ranks
        theirs = {name: p.grad for name, p in model.named_parameters()}
        worst = max(
            float((p.grad - theirs[n]).abs().max() / theirs[n].abs().max()) for n, p in session.parameters.items()
        )
        if rank == 0:
            Path(out, "worst").write_text(str(worst))
        leave(world)

    codes = on_ranks(one, out, work)
    assert not any(codes), codes
    worst = float(Path(out, "worst").read_text())
    return [] if worst <= 2e-6 else [f"differs by {worst:.1e}"]


def main(folder):
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    write_corpus(folder)
    prepare(experiment(folder, "plain", "single"))
    everything, found = "--all" in sys.argv, {}
    for model, strategy in SLOW if everything else QUICK:
        found[f"{model} {strategy}"] = compared(folder, model, strategy)
    if everything:
        for model in ("plain", "tied", "bf16"):
            found[f"moves {model}"] = moves(folder, model, walk(MOVES))
        found["torch's own"] = torchs_own(folder)
        for strategy in DYING:
            found[f"deaths {strategy}"] = deaths(folder, strategy)
        for strategy in ("ddp4", "fsdp4", "hsdp", "pp2x2-cut"):
            found[f"resume {strategy}"] = resumed(folder, strategy)
    else:
        found["moves plain"] = moves(folder, "plain", ["single", "fsdp2", "ddp2", "single"])
    assert PowerCut  # named in the configuration of a run that is cut
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
