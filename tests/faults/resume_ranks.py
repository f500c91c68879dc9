"""Forked ranks train in legs: stopped or killed, resumed under another layout; prints {case: [what differs]} as JSON.

`python resume_ranks.py FOLDER [--all]`. Every case ends with the losses, weights and optimizer of the uninterrupted run of
its kind, bit for bit. Legs with equally many ranks run in one group of processes, the first legs of all cases first.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._dynamo  # what optimizers and checkpoint import at their first call: here once, not once per rank
from safetensors import safe_open

torch.set_num_threads(1)

from forked_ranks import forked, write_corpus  # noqa: E402

from forgather_dsl import (  # noqa: E402
    BF16,
    Adafactor,
    AdamW,
    Bytes,
    DualPipeV,
    Experiment,
    FullRecompute,
    GPipe,
    Interleaved,
    Lion,
    Llama,
    LoopedBFS,
    Muon,
    OneFOneB,
    Pipeline,
    Single,
    TextFiles,
    VHalf,
    VMin,
    ZeroBubble,
    ZeroBubbleH1,
    ZeroBubbleH2,
    ZeroBubbleV,
    patch,
)
from forgather_dsl.dsl import replace  # noqa: E402
from forgather_dsl.errors import Interrupted  # noqa: E402
from forgather_dsl.parallel.failures import PeerLost  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.specs.experiment import world_size  # noqa: E402
from forgather_dsl.train import checkpoint, directory  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import Session, run_session  # noqa: E402

SECONDS = 900
STEPS, LEG = 6, 2  # of a run, of each leg but the last


class Hard(Experiment):
    """Everything that could depend on the layout or on where a run was cut."""

    seq_len, batch_size, microbatch_size, steps, log_every, save_every = 16, 8, 1, STEPS, 1, LEG
    sampling, loggers, eval_data, isolate_documents, clip_norm = None, (), None, True, 0.5
    tokenizer, optimizer, recompute = Bytes(), Muon(), FullRecompute()
    model = patch(Llama, dim=16, num_layers=8, num_heads=2, dropout=0.1, tie_embeddings=True)


UNTIED = patch(Llama, tie_embeddings=False)
KINDS: dict[str, dict[str, Any]] = {  # how an experiment differs from Hard, and its uninterrupted run
    "fp32": {"parallel": Single()},
    "bf16": {"parallel": Single(), "precision": BF16(), "optimizer": AdamW(states="8bit")},
    "chance": {"parallel": Single(), "precision": BF16(rounding="stochastic"), "optimizer": AdamW(states="bf16")},
    "kahan": {"parallel": Single(), "precision": BF16(rounding="kahan"), "optimizer": Lion(lr=1e-3)},
    "factored": {"parallel": Single(), "precision": BF16(rounding="stochastic"), "optimizer": Adafactor(lr=1e-3)},
    "moved": {
        "parallel": Single(),
        "precision": BF16(rounding="kahan"),
        "optimizer": AdamW(states="8bit"),
        "model": UNTIED,
    },
    "adamw": {"parallel": Single(), "optimizer": AdamW(), "model": UNTIED},
    "spread 2": {"parallel": Pipeline(stages=2, spread_head=True), "optimizer": AdamW(), "model": UNTIED},
    "spread 4": {"parallel": Pipeline(stages=4, spread_head=True), "optimizer": AdamW(), "model": UNTIED},
    "replicas": {"parallel": Pipeline(stages=1, replicas=2)},
}


class Leg(NamedTuple):
    """A part of a run: until it is stopped after `LEG` steps, or a rank is killed two steps after the checkpoint."""

    parallel: Any
    killed: int | None = None  # which rank


def pipe(stages: int, schedule: Any, **options: Any) -> Leg:
    killed = options.pop("killed", None)
    return Leg(Pipeline(stages=stages, schedule=schedule, **options), killed)


ONE = Leg(Single())
CASES: dict[str, tuple[str, list[Leg]]] = {
    "1, 2 ZB-V, 4 1F1B": ("fp32", [ONE, pipe(2, ZeroBubbleV()), pipe(4, OneFOneB())]),
    "4 DualPipeV, 1, 2 GPipe": ("fp32", [pipe(4, DualPipeV()), ONE, pipe(2, GPipe())]),
    "2 VHalf killed, 4 ZB-H1": ("fp32", [pipe(2, VHalf(), killed=1), pipe(4, ZeroBubbleH1())]),
    "bf16 2 Interleaved, 4 ZB-H2": ("bf16", [pipe(2, Interleaved()), pipe(4, ZeroBubbleH2())]),
    "spread 2 1F1B, ZB-H1": ("spread 2", [pipe(2, OneFOneB(), spread_head=True), pipe(2, ZeroBubbleH1(), spread_head=True)]),
    "replicas 2 x 1, 2 x 2 1F1B": ("replicas", [pipe(1, OneFOneB(), replicas=2), pipe(2, OneFOneB(), replicas=2)]),
    "1 twice": ("fp32", [ONE, ONE, ONE]),
    "2 1F1B, 4 Interleaved, 2 VMin": ("fp32", [pipe(2, OneFOneB()), pipe(4, Interleaved()), pipe(2, VMin())]),
    "4 VMin, 4 VHalf, 4 GPipe": ("fp32", [pipe(4, VMin()), pipe(4, VHalf()), pipe(4, GPipe())]),
    "2 DualPipeV, 2 LoopedBFS, 2 ZB-H1": ("fp32", [pipe(2, DualPipeV()), pipe(2, LoopedBFS()), pipe(2, ZeroBubbleH1())]),
    "4 ZB-V, 2 Interleaved, 4 LoopedBFS": ("fp32", [pipe(4, ZeroBubbleV()), pipe(2, Interleaved()), pipe(4, LoopedBFS())]),
    "4 searched, 2 searched, 1": ("fp32", [pipe(4, ZeroBubble()), pipe(2, ZeroBubble(chunks=2)), ONE]),
    "2 post-validated, 4 post-validated, 1": ("fp32", [pipe(2, OneFOneB(), post_validation=True), pipe(4, ZeroBubbleH2(), post_validation=True), ONE]),
    "4 ZB-H1 killed, 2 ZB-H2, 4 DualPipeV": ("fp32", [pipe(4, ZeroBubbleH1(), killed=2), pipe(2, ZeroBubbleH2()), pipe(4, DualPipeV())]),
    "1 killed, 2 torch's runtime, 1": ("fp32", [Leg(Single(), killed=0), pipe(2, OneFOneB(), engine="torch"), ONE]),
    "adamw 1, 4 GPipe, 2 ZB-V": ("adamw", [ONE, pipe(4, GPipe()), pipe(2, ZeroBubbleV())]),
    "bf16 1, 2 ZB-V, 1": ("bf16", [ONE, pipe(2, ZeroBubbleV()), ONE]),
    "chance 1, 2 ZB-V, 4 GPipe": ("chance", [ONE, pipe(2, ZeroBubbleV()), pipe(4, GPipe())]),
    "kahan 2 1F1B killed, 1, 4 ZB-H1": ("kahan", [pipe(2, OneFOneB(), killed=1), ONE, pipe(4, ZeroBubbleH1())]),
    "factored 4 1F1B, 2 post-validated, 1": ("factored", [pipe(4, OneFOneB()), pipe(2, OneFOneB(), post_validation=True), ONE]),
    "bf16 4 DualPipeV, 2 1F1B killed, 4 VHalf": ("bf16", [pipe(4, DualPipeV()), pipe(2, OneFOneB(), killed=0), pipe(4, VHalf())]),
    "spread 4 GPipe, ZB-H1, 1F1B": ("spread 4", [pipe(4, GPipe(), spread_head=True), pipe(4, ZeroBubbleH1(), spread_head=True), pipe(4, OneFOneB(), spread_head=True)]),
    "replicas 2 x 2 ZB-V, 2 x 1, 2 x 2 GPipe": ("replicas", [pipe(2, ZeroBubbleV(), replicas=2), pipe(1, OneFOneB(), replicas=2), pipe(2, GPipe(), replicas=2)]),
}  # fmt: skip
QUICK = ["1, 2 ZB-V, 4 1F1B", "2 VHalf killed, 4 ZB-H1"]
MOVED = ("spread 2 to 4 to 1", ("moved", [pipe(2, OneFOneB(), spread_head=True), pipe(4, ZeroBubbleH1(), spread_head=True), ONE]))  # fmt: skip
"""Other sums of the loss, so other bits than one process has: here what a restored rank holds is compared alone."""


def experiment(kind: str, corpus: str, leg: Leg | None = None) -> Experiment:
    changes = KINDS[kind] | ({} if leg is None else {"parallel": leg.parallel})
    return replace(Hard(data=TextFiles(paths=corpus, held_out=0.2)), **changes)


def assembled(path: str) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, slices put together, read without the code under test."""
    manifest = json.loads(Path(path, "manifest.json").read_text())
    tensors: dict[str, torch.Tensor] = {}
    for name in manifest["files"]:
        slices = manifest["slices"].get(name, {})
        with safe_open(os.path.join(path, name), "pt") as file:
            for key in file.keys():  # noqa: SIM118 not a dict
                part = file.get_tensor(key)
                shape, offset = slices.get(key, (part.shape, [0] * part.dim()))
                whole = tensors.setdefault(key, torch.full(list(shape), unset(part.dtype), dtype=part.dtype))
                whole[tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))] = part
    return tensors


def unset(dtype: torch.dtype) -> float:
    """What no number of a checkpoint is likely to be: codes of 8-bit states and lower halves are whole numbers."""
    return float("nan") if dtype.is_floating_point else torch.iinfo(dtype).max


def not_moved(session: Session, path: str) -> list[str]:
    """What this rank holds after restoring that is not what the checkpoint has."""
    stored, wrong = assembled(path), []
    masters = dict(session.optimizer.masters())
    held = {f"weights/{name}": masters.get(name, p.detach()) for name, p in session.parameters.items()}
    for name, _, state in session.optimizer.named_states():
        held |= {f"optimizer/{name}/{key}": value for key, value in state.items()}
    shard = session.pipeline.shard
    for key, value in held.items():
        expected = stored.get(key)
        if shard is not None and shard.name in key and expected is not None and expected.dim():
            expected = expected[shard.rows.start : shard.rows.stop]
        if expected is None or not torch.equal(value, expected.to(value.dtype)):
            wrong.append(f"{key} was not restored at step {session.step}")
    states = sum(key.startswith("optimizer/") for key in held)
    return wrong if states else [*wrong, "no optimizer state was restored"]


def train(name: str, kind: str, leg: Leg | None, number: int, folder: str, rank: int) -> None:
    """One leg on this rank. The run directory is brought up to date by rank 0."""
    last = leg is None or number == len({**CASES, MOVED[0]: MOVED[1]}[name][1]) - 1
    out = str(Path(folder, name.replace(" ", "-")))
    one = experiment(kind, f"{folder}/corpus", leg)
    if rank == 0:
        directory.write(one, out, None, None)
        Path(out, f"ready{number}").touch()
    while not Path(out, f"ready{number}").exists():
        time.sleep(0.01)
    os.environ[STORE] = f"{out}/store{number}"
    stop_at = STEPS if last else LEG * (number + 1)
    said, restore = Session.said, Session.restore
    wrong: list[str] = []

    def saying(session: Session, loss_sum: float | None, stop: bool, save: bool) -> Any:
        if leg is not None and leg.killed == rank and session.step >= stop_at + 1:
            os.kill(os.getpid(), signal.SIGKILL)
        asked = not last and leg is not None and leg.killed is None and session.step >= stop_at - 1
        return said(session, loss_sum, stop or asked, save)

    def restoring(session: Session, saved: checkpoint.Saved) -> None:
        restore(session, saved)
        if saved.step != LEG * number:
            wrong.append(f"went on from step {saved.step}, not {LEG * number}")
        wrong.extend(not_moved(session, saved.path))

    Session.said, Session.restore = saying, restoring
    try:
        run_session(one, out, prepare(one), resume="auto" if number else "never", changes=[])
    except Interrupted:
        if last:
            wrong.append("was interrupted")
    finally:
        Session.said, Session.restore = said, restore
        if wrong:
            Path(folder, f"wrong-{os.getpid()}-{number}-{name.replace(' ', '-')}.json").write_text(
                json.dumps([name, wrong])
            )


def final(path: Path) -> dict[str, str]:
    """Losses and norms in hex, SHA-256 of every tensor of the last checkpoint, and the rest of its state."""
    out: dict[str, str] = {}
    for line in (path / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for key in ("loss", "grad_norm"):
            if key in record:
                name = f"{key} of step {record['step']}"
                out[name] = float(record[key]).hex() + (" twice" if name in out else "")
    newest = str(sorted((path / "checkpoints").glob("step-????????"))[-1])
    for key, tensor in assembled(newest).items():
        out[key] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    manifest = json.loads(Path(newest, "manifest.json").read_text())
    out |= {"data": json.dumps(manifest["state"]["data"]), "tokens": str(manifest["state"]["tokens"])}
    return out | {"scalars": json.dumps(manifest["scalars"], sort_keys=True)}


def group(ranks: int, legs: list[tuple[str, str, Leg | None]], number: int, folder: str) -> list[int]:
    """Fork `ranks` ranks that run these legs one after the other; their exit codes."""

    def run_legs(rank: int) -> int:
        try:
            for name, kind, leg in legs:
                train(name, kind, leg, number, folder, rank)
        except PeerLost:
            return 9
        return 0

    return forked(ranks, run_legs)


def main(folder: str) -> None:
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    write_corpus(folder)
    prepare(experiment("fp32", f"{folder}/corpus"))
    everything = "--all" in sys.argv
    cases = {**CASES, MOVED[0]: MOVED[1]} if everything else {name: CASES[name] for name in QUICK}
    runs: dict[tuple[int, int], list[tuple[str, str, Leg | None]]] = {}
    for kind in dict.fromkeys(kind for kind, _ in cases.values()):
        runs.setdefault((0, world_size(experiment(kind, folder))), []).append((f"whole {kind}", kind, None))
    for name, (kind, legs) in cases.items():
        for number, leg in enumerate(legs):
            runs.setdefault((number, world_size(experiment(kind, folder, leg))), []).append((name, kind, leg))
    codes = []
    for (number, ranks), legs in sorted(runs.items(), key=lambda item: item[0]):
        alive = [leg for leg in legs if leg[2] is None or leg[2].killed is None]
        codes += group(ranks, alive, number, folder) if alive else []
        for leg in (leg for leg in legs if leg not in alive):
            killed = group(ranks, [leg], number, folder)
            expected = [-signal.SIGKILL if rank == leg[2].killed else 9 for rank in range(ranks)]  # type: ignore[union-attr]
            codes += [int(killed != expected)]
        if any(codes):
            break
    wrong: dict[str, list[str]] = {name: [] for name in cases}
    for name, (kind, _) in cases.items() if not any(codes) else ():
        if name == MOVED[0]:
            continue
        expected, found = (final(Path(folder, n.replace(" ", "-"))) for n in (f"whole {kind}", name))
        wrong[name] += [f"{key} differs" for key in expected | found if expected.get(key) != found.get(key)]
    for file in Path(folder).glob("wrong-*.json"):
        name, found = json.loads(file.read_text())
        wrong[name] += found
    hops = sum(len(legs) - 1 for _, legs in cases.values())
    print(json.dumps({"codes": codes, "cases": wrong, "hops": hops}))


if __name__ == "__main__":
    main(sys.argv[1])
