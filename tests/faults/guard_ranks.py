"""Forked ranks train with steps that are not finite and with data that makes the loss jump; prints what each did as JSON.

`python guard_ranks.py FOLDER [--all]`. A fault is put where it arises: into one microbatch's gradient after an action of one
stage, into an activation, into the loss; or into the data at certain positions of the loader.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo

torch.set_num_threads(1)

from forked_ranks import forked, write_corpus  # noqa: E402

from forgather_dsl import (  # noqa: E402
    BF16,
    AdamW,
    BF16Mixed,
    Bytes,
    Constant,
    Experiment,
    Guard,
    Llama,
    Muon,
    Pipeline,
    Single,
    Spike,
    TextFiles,
    ZeroBubbleH1,
    ZeroBubbleH2,
    patch,
)
from forgather_dsl.data.loader import Loader  # noqa: E402
from forgather_dsl.dsl import replace  # noqa: E402
from forgather_dsl.errors import Interrupted, UserError  # noqa: E402
from forgather_dsl.parallel.execution import Execution  # noqa: E402
from forgather_dsl.parallel.interpreter import Pipeline as Engine  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.parallel.stage import Stage  # noqa: E402
from forgather_dsl.specs.experiment import world_size  # noqa: E402
from forgather_dsl.train import directory  # noqa: E402
from forgather_dsl.train.guards import Guards  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import Session, run_session  # noqa: E402

TWO, SPLIT = (
    Pipeline(stages=2, schedule=ZeroBubbleH1()),
    Pipeline(stages=2, schedule=ZeroBubbleH2(), post_validation=True),
)


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, log_every, save_every = 16, 8, 1, 6, 1, 2
    sampling, loggers, clip_norm, eval_data = None, (), 1.0, None
    tokenizer, optimizer, parallel = Bytes(), AdamW(), TWO
    model = patch(Llama, dim=16, num_layers=4, num_heads=2, dropout=0.1)


class Jumpy(Small):
    """Twenty-four steps; four batches, the 13th to the 16th, are of a byte that is nowhere else."""

    steps, save_every, lr_schedule = 24, 5, Constant()
    optimizer = AdamW(lr=1e-2)
    guard = Guard(spike=Spike(window=6, steps=2, threshold=3.0, rollback=True))


SKIPS: dict[str, tuple[str, list[int], dict[str, Any]]] = {  # fault, its steps counted from 0, changes
    "gradient": ("gradient", [2, 3], {}),
    "gradient, bf16": ("gradient", [2, 3], {"precision": BF16()}),
    "stage 0": ("stage 0", [2, 3], {"parallel": SPLIT, "optimizer": Muon()}),
    "embedding": ("embedding", [2, 3], {"parallel": SPLIT, "precision": BF16()}),
    "loss": ("loss", [2, 3], {"precision": BF16Mixed()}),
    "activation": ("activation", [2, 3], {"parallel": SPLIT, "precision": BF16()}),
    "one process": ("gradient", [2, 3], {"parallel": Single(), "optimizer": Muon()}),
    "stops": ("stage 0", [3, 4, 5], {"steps": 9}),
    "stops, validated": ("stage 0", [3, 4, 5], {"steps": 9, "parallel": SPLIT}),
    "stops at once": ("loss", [0], {"steps": 3, "guard": Guard(max_skipped=1), "parallel": Single()}),
    "stops forward": ("activation", [3, 4, 5], {"steps": 9}),
    "weights": ("weights", [2], {"steps": 9}),
}
JUMPS: dict[str, dict[str, Any]] = {
    "one": {"parallel": Single()},
    "again": {"parallel": Single()},
    "two": {"parallel": TWO},
    "validated": {"parallel": SPLIT},
    "killed": {"parallel": TWO},
    "asked to stop": {"parallel": TWO},
    "once": {"parallel": Single(), "guard": patch(Guard, spike=patch(Spike, max_rollbacks=1))},
    "told": {"parallel": Single(), "guard": patch(Guard, spike=patch(Spike, rollback=False))},
    "early": {"parallel": Single(), "save_every": 20},
}
QUICK = ("one process", "gradient", "stops, validated", "one", "validated")
STEP = 0


def inject(fault: str, steps: list[int]) -> None:
    """From now on, in these steps."""
    step, backward, weights, hand_on = Engine.step, Execution._backward, Execution._weights, Execution._hand_on
    original = Stage.forward

    def stepping(engine: Any, tokens: Any, targets: Any, documents: Any, loss_fn: Any, number: int, *rest: Any) -> Any:
        global STEP
        STEP = number
        return step(engine, tokens, targets, documents, loss_fn, number, *rest)

    def poison(execution: Any, action: Any, name: str, value: float) -> None:
        parameter = dict(execution.stages[action.stage].model.named_parameters())[name]
        assert parameter.grad is not None
        parameter.grad.flatten()[0] = value

    def after_backward(execution: Any, action: Any) -> None:
        last = execution.stages[action.stage].last
        backward(execution, action)
        if STEP in steps and fault == "gradient" and last and action.microbatch == 3:
            poison(execution, action, "model.norm.weight", float("inf"))
        if STEP in steps and fault == "stage 0" and action.stage == 0 and action.microbatch == 5:
            poison(execution, action, "model.layers.1.input_layernorm.weight", float("nan"))

    def after_weights(execution: Any, action: Any) -> None:
        weights(execution, action)
        if STEP in steps and fault == "embedding" and action.stage == 0 and action.microbatch == 7:
            poison(execution, action, "model.embed_tokens.weight", float("nan"))

    def handing_on(execution: Any, stage: Any, y: torch.Tensor, k: int) -> None:
        hand_on(execution, stage, y, k)
        if STEP in steps and fault == "loss" and stage.last and k == 1:
            execution.outputs[k] = execution.outputs[k] + float("inf")
        if STEP in steps and fault == "weights" and stage.first:
            dict(stage.named_parameters())["model.layers.0.mlp.up_proj.weight"].data[0, 0] = float("nan")

    def forward(stage: Stage, x: torch.Tensor, documents: Any, key: Any, *rest: Any) -> torch.Tensor:
        y = original(stage, x, documents, key, *rest)
        return y * float("nan") if fault == "activation" and key[1] in steps and stage.first and key[2] == 5 else y

    Engine.step, Execution._backward, Execution._weights = stepping, after_backward, after_weights
    Execution._hand_on, Stage.forward = handing_on, forward


def digest(session: Session) -> str:
    """Of all that a step may change on this rank: weights, masters, optimizer."""
    found = hashlib.sha256()
    masters = dict(session.optimizer.masters())
    tensors = {**masters, **{f"weight {name}": p for name, p in session.parameters.items()}}
    for name, _, state in session.optimizer.named_states():
        tensors |= {f"{name} {key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().float().numpy().tobytes())
    return found.hexdigest()


def run(one: Experiment, out: str, rank: int, resume: str = "never") -> str:
    """Train on this rank; what ended it, if something did."""
    if rank == 0:
        directory.write(one, out, None, None)
        Path(out, f"ready-{resume}").touch()
    while not Path(out, f"ready-{resume}").exists():
        time.sleep(0.01)
    os.environ[STORE] = f"{out}/store-{resume}"
    try:
        run_session(one, out, prepare(one), resume=resume, changes=[])
    except Interrupted:
        return "interrupted"
    except UserError as error:
        if torch.distributed.is_initialized():  # a rank that failed ends; this one has more to do
            torch.distributed.destroy_process_group()
        return str(error)
    return ""


def skips(name: str, folder: str, rank: int) -> dict[str, Any]:
    """What ended the run, and the digest of this rank's state after each step."""
    fault, steps, changes = SKIPS[name]
    before = Engine.step, Execution._backward, Execution._weights, Execution._hand_on, Guards.judge, Stage.forward
    digests: list[str] = []

    def judging(guards: Guards, agreed: Any, valid: int, report: Any) -> None:
        digests.append(digest(guards.session))
        before[4](guards, agreed, valid, report)

    inject(fault, steps)
    Guards.judge = judging
    try:
        one = replace(Small(data=TextFiles(paths=f"{folder}/corpus")), **changes)
        ended = run(one, str(Path(folder, name.replace(" ", "-"))), rank)
    finally:
        Engine.step, Execution._backward, Execution._weights, Execution._hand_on, Guards.judge, Stage.forward = before
    return {"ended": ended, "digests": digests}


def jumps(name: str, folder: str, rank: int, resume: str = "never") -> dict[str, Any]:
    """Train on the data with four strange batches. "asked to stop" saves at the first high loss, "killed" dies after the
    first rollback, before the next checkpoint; both go on when they are run again.
    """
    original, said = Loader.next_batch, Session.said

    def strange(loader: Loader) -> Any:
        number = loader.position // loader.batch_size
        batch = original(loader)
        if loader.epoch == 0 and 12 <= number < 16:
            batch.targets[:] = np.where(batch.targets >= 0, 254, batch.targets)
        return batch

    def saying(session: Session, loss_sum: float | None, stop: bool, save: bool) -> Any:
        if name == "killed" and session.guards.rollbacks and session.step == 11:
            os.kill(os.getpid(), signal.SIGKILL)
        return said(session, loss_sum, stop or (name == "asked to stop" and session.step == 12), save)

    Loader.next_batch = strange
    if resume == "never":
        Session.said = saying
    try:
        one = replace(Jumpy(data=TextFiles(paths=f"{folder}/corpus")), **JUMPS[name])
        return {"ended": run(one, str(Path(folder, f"jump-{name.replace(' ', '-')}")), rank, resume)}
    finally:
        Loader.next_batch, Session.said = original, said


def group(ranks: int, work: Any, file: str) -> list[int]:
    """Fork ranks that do `work(rank)` and write what it returns; their exit codes."""

    def writing(rank: int) -> int:
        Path(f"{file}-{rank}.json").write_text(json.dumps(work(rank)))
        return 0

    return forked(ranks, writing)


def main(folder: str) -> None:
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    write_corpus(folder)
    small = Small(data=TextFiles(paths=f"{folder}/corpus"))
    prepare(small)
    wanted = {*SKIPS, *JUMPS} if "--all" in sys.argv else {*QUICK}
    found: dict[str, Any] = {"skips": {}, "jumps": {}, "codes": []}
    for ranks in (1, 2):
        names = [n for n in SKIPS if n in wanted and world_size(replace(small, **SKIPS[n][2])) == ranks]
        jumping = [n for n in JUMPS if n in wanted - {"killed"} and world_size(replace(small, **JUMPS[n])) == ranks]

        def work(rank: int, names: list[str] = names, jumping: list[str] = jumping) -> dict[str, Any]:
            done = {"skips": {name: skips(name, folder, rank) for name in names}, "jumps": {}}
            for name in jumping:
                done["jumps"][name] = [jumps(name, folder, rank)["ended"]]
                if done["jumps"][name] == ["interrupted"]:
                    done["jumps"][name].append(jumps(name, folder, rank, "auto")["ended"])
            return done

        found["codes"] += group(ranks, work, f"{folder}/{ranks}")
        if any(found["codes"]):
            break
        for rank in range(ranks):
            part = json.loads(Path(f"{folder}/{ranks}-{rank}.json").read_text())
            for name, result in part["skips"].items():
                found["skips"].setdefault(name, []).append(result)
            found["jumps"] |= part["jumps"]
    if "killed" in wanted:
        found["killed"] = group(2, lambda rank: jumps("killed", folder, rank), f"{folder}/killed")
        found["codes"] += group(2, lambda rank: jumps("killed", folder, rank, "auto"), f"{folder}/resumed")
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
