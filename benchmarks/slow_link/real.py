"""Two ranks that really compute: the same experiment under DDP, FSDP2 and pipelines, by exchanging `parallel`, on shaped links.

Each mode is one run of the product (its trainer, data, checkpoints left out) on two hosts of the network, forked from one
process that has imported torch. A logger on rank 0 changes the links' rate as steps go by, and counts time and bytes. Modes
give the same losses to rounding, which is checked: what is compared is equal training.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from slow_link.network import Network, counted
from slow_link.theory import least_seconds, within

from forgather_dsl import (
    DDP,
    FP32,
    FSDP2,
    Bytes,
    Constant,
    Experiment,
    Interleaved,
    Llama,
    Logger,
    OneFOneB,
    Parallel,
    Pipeline,
    TextFiles,
    ZeroBubble,
    ZeroBubbleV,
    patch,
)
from forgather_dsl.dsl import replace
from forgather_dsl.parallel.launch import STORE
from forgather_dsl.parallel.route import Route
from forgather_dsl.train import directory
from forgather_dsl.train.prepare import prepare
from forgather_dsl.train.session import run_session

__all__ = ["MODES", "RATES", "real_table", "run_modes"]

RATES = (None, 800e6, 400e6, 200e6, 75e6)  # bits/s
RANKS, WARM_UP, EACH = 2, 2, 4  # steps before anything counts; steps at each rate
MODES: dict[str, tuple[Parallel, int]] = {  # and sequences of a microbatch: data parallelism takes its share whole
    "DDP": (DDP(replicas=RANKS), 4),
    "FSDP2": (FSDP2(shards=RANKS), 4),
    "1F1B": (Pipeline(stages=RANKS, schedule=OneFOneB()), 1),
    "Interleaved": (Pipeline(stages=RANKS, schedule=Interleaved()), 1),
    "ZeroBubbleV": (Pipeline(stages=RANKS, schedule=ZeroBubbleV()), 1),
    "ZeroBubble": (Pipeline(stages=RANKS, schedule=ZeroBubble(chunks=2, memory_cap=RANKS)), 1),
}
ROUNDING = 1e-4  # of losses, between one that adds over replicas and one that does not


class Counting(Logger["slow_link.real.Counter"]):
    """Told of each step."""

    file: str = ""


class Trained(Experiment):
    """6.4 million parameters, 512 tokens a step: 0.4 s of a core for each of two ranks."""

    seq_len, batch_size, log_every, steps = 64, 8, 1, WARM_UP + EACH * len(RATES)
    sampling, watchdog, eval_data = None, None, None
    precision = FP32()
    lr_schedule = Constant()
    tokenizer = Bytes()
    data = TextFiles(paths="docs", held_out=0.0)
    model = patch(Llama, dim=256, num_layers=8, num_heads=4)


class Counter:
    """Writes, for each step: the rate, seconds and processor seconds since the step before, bytes sent, the loss."""

    network: Network  # set before the ranks are forked

    def __init__(self, file: str) -> None:
        self.file, self.rate, self.last = file, RATES[0], self._now()

    def _now(self) -> tuple[float, float, int]:
        return time.perf_counter(), time.process_time(), counted().payload

    def log(self, record: dict[str, Any]) -> None:
        """After each step."""
        if "loss" not in record:
            return
        found = [now - before for now, before in zip(self._now(), self.last)]
        with open(self.file, "a", encoding="utf-8") as file:
            file.write(
                json.dumps({"step": record["step"], "rate": self.rate, "found": found, "loss": record["loss"]}) + "\n"
            )
        place, rest = divmod(record["step"] - WARM_UP, EACH)
        if rest == 0 and 0 <= place < len(RATES):
            self.rate = RATES[place]
            self.network.shape(self.rate)
        self.last = self._now()

    def close(self) -> None:
        """Nothing is open."""


def run_modes(modes: list[str]) -> list[dict[str, Any]]:
    """A row for each mode: medians at each rate, and the losses."""
    torch.set_num_threads(1)
    rows = []
    with Network(RANKS) as network, tempfile.TemporaryDirectory() as folder:
        os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
        for mode in modes:
            network.shape(None)
            parallel, size = MODES[mode]
            file = f"{folder}/{mode}.jsonl"
            changes = {"parallel": parallel, "microbatch_size": size, "loggers": (Counting(file=file),)}
            experiment = replace(Trained(), **changes)
            _run(experiment, network, f"{folder}/{mode}")
            lines = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]
            rows.append({"mode": mode, "expected": _expected(experiment, f"{folder}/{mode}"), **_medians(lines)})
            print(f"{mode}: done", flush=True)
    return rows


def _run(experiment: Experiment, network: Network, path: str) -> None:
    Counter.network = network
    directory.write(experiment, path, None, None)
    prepared = prepare(experiment)
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child:
            children.append(child)
            continue
        code = 1
        try:
            network.enter(rank)
            env = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS), STORE: f"{path}/store"}
            os.environ |= env
            run_session(experiment, path, prepared, resume="never", changes=[])
            code = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"ranks ended with {codes}")


def _medians(lines: list[dict[str, Any]]) -> dict[str, Any]:
    at: list[list[float]] = []
    for rate in RATES:
        found = [line["found"] for line in lines if line["rate"] == rate and line["step"] > WARM_UP]
        at.append([statistics.median(column) for column in zip(*found)])
    return {"at": at, "losses": [line["loss"] for line in lines]}


def _expected(experiment: Experiment, path: str) -> float:
    """Bytes that rank 0 sends in a step, by the formulas."""
    model = experiment.model
    weights = model.num_layers * (4 * model.dim**2 + 3 * model.dim * model.ffn_dim + 2 * model.dim)
    parameters = 4 * (weights + 2 * model.vocab_size * model.dim + model.dim)
    if isinstance(experiment.parallel, DDP):
        return 2 * (RANKS - 1) / RANKS * parameters
    if isinstance(experiment.parallel, FSDP2):
        return 3 * (RANKS - 1) / RANKS * parameters
    schedule = directory.read_layout(path).schedule
    return len(Route(schedule, 0).targets) * experiment.microbatch_size * experiment.seq_len * model.dim * 4.0


def real_table(rows: list[dict[str, Any]]) -> tuple[str, list[str]]:
    """In markdown: seconds per step at each rate, processor seconds, bytes beside the formula; and what is wrong."""
    heads = ["mode", *("no limit" if rate is None else f"{rate / 1e6:g} Mb/s" for rate in RATES)]
    heads += ["CPU s", "MB sent", "formula", "largest difference of a loss"]
    lines, wrong = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)], []
    for row in rows:
        cpu = statistics.median(at[1] for at in row["at"])
        sent = statistics.median(at[2] for at in row["at"])
        off = max(abs(a - b) / abs(b) for a, b in zip(row["losses"], rows[0]["losses"], strict=True))
        cells = [row["mode"], *(f"{at[0]:.2f}" for at in row["at"]), f"{cpu:.2f}", f"{sent / 1e6:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['expected'] / 1e6:.3f}", f"{off:.1e}"]) + " |")
        wrong += [f"{row['mode']}: {sent:.0f} bytes, not {row['expected']:.0f}"] * (not within(sent, row["expected"]))
        wrong += [f"{row['mode']}: losses differ by {off:.1e}"] * (off > ROUNDING)
    if fsdp := next((row for row in rows if row["mode"] == "FSDP2"), None):
        cpu = min(statistics.median(at[1] for at in row["at"]) for row in rows)
        least = [least_seconds(cpu, at[2], rate) for rate, at in zip(RATES, fsdp["at"])]
        lines.append(
            "| FSDP, perfect overlap, of an idle core | " + " | ".join(f"{s:.2f}" for s in least) + " | | | | |"
        )
    return "\n".join(lines), wrong
