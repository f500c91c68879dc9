"""Measures what one microbatch takes in each part of a model, on this machine: the times that plans are made from.

`python -m forgather_dsl.train.profile CONFIG OUT` in a process of its own, so that the launcher stays free of torch and
the device is free again afterwards. In: `config.json`. Out: JSON: seconds of F, I and W of the embedding, of each layer,
of norm, head and loss. Real stages of one layer each are run; ends are what a stage takes more than its layer alone.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from ..data.loader import IGNORED
from ..dsl import build, from_dict
from ..models.init import initialise
from ..parallel.compiled import require_compiler
from ..parallel.float8 import require_float8, to_float8
from ..parallel.host_allocator import keep_freed_memory
from ..parallel.losses import loss_at, takes_head
from ..parallel.stage import Stage
from ..parallel.weight_gradients import WeightGradients
from ..specs import FP8, Experiment
from ..specs.recompute import policy
from .repeatable import repeatable
from .trainer import TRUSTED

__all__ = ["measure"]

ROUNDS = 7  # timed runs of each stage, taken in turns
KINDS = ("F", "I", "W")
Seconds = dict[str, float]


def measure(experiment: Experiment, device: torch.device, rounds: int = ROUNDS) -> dict[str, Any]:
    """Medians of `rounds` runs in turns, after one that warms up. Layers that are built alike are measured once."""
    alike: dict[str, int] = {}
    kinds = [alike.setdefault(sign, index) for index, sign in enumerate(_signs(experiment))]
    runs = {index: _runner(experiment, index, "middle", device) for index in sorted(set(kinds))}
    ends = {where: _runner(experiment, kinds[0], where, device) for where in ("first", "last")}
    every: dict[Any, Callable[[], Seconds]] = {**runs, **ends}
    found: dict[Any, list[Seconds]] = {key: [] for key in every}
    for number in range(rounds + 1):
        for key, run in every.items():
            seconds = run()
            if number:
                found[key].append(seconds)
    medians = {key: {k: statistics.median(run[k] for run in all_) for k in KINDS} for key, all_ in found.items()}
    layers = [medians[kind] for kind in kinds]
    more = {where: {k: max(0.0, medians[where][k] - layers[0][k]) for k in KINDS} for where in ends}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads"
    return {
        "device": name,
        "seq_len": experiment.seq_len,
        "microbatch_size": experiment.microbatch_size,
        "num_layers": len(layers),
        "seconds": {"embedding": more["first"], "layers": layers, "head": more["last"]},
    }


def _signs(experiment: Experiment) -> list[str]:
    """A text per layer, the same for layers that are built alike (a sliding window is an attribute of its attention)."""
    with torch.device("meta"):
        model: Any = build(experiment.model)
    out = []
    for layer in model.layers:
        plain = [
            {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool)) and k != "layer_index"}
            for module in layer.modules()
        ]
        out.append(f"{layer!r} {plain}")
    return out


def _runner(experiment: Experiment, layer: int, where: str, device: torch.device) -> Callable[[], Seconds]:
    """One F, I and W of a stage that holds `layer`, and the embedding or the head when it is the first or last."""
    precision = build(experiment.precision)
    with torch.device("meta"):
        model: Any = build(experiment.model)
    model.to(precision.parameters)
    recompute: Any = policy(experiment.recompute) or "full"
    index = {"first": 0, "middle": 1, "last": 2}[where]
    more = recompute, experiment.recompute.offload, experiment.recompute.mlp_tiles
    stage = Stage(model, index, 3, range(layer, layer + 1), device, precision.autocast(device), *more)
    initialise(model, 0)
    if isinstance(experiment.precision, FP8):
        require_float8(device, experiment.precision.emulate)
        to_float8(model.layers)
    if experiment.compile:
        require_compiler(device)
        stage.compile()
    rows = (experiment.microbatch_size, experiment.seq_len)
    ids = torch.zeros(rows, dtype=torch.int64, device=device).random_(experiment.model.vocab_size)
    loss_fn = build(experiment.loss)
    targets = ids.roll(-1, 1)
    targets[:, -1] = IGNORED
    hidden = torch.randn(*rows, stage.dim, device=device).to(stage.dtype)

    def run() -> Seconds:
        x = ids if stage.first else hidden.clone().requires_grad_()
        with stage.gradients.step():
            marks = [_now(device)]
            y = stage.forward(x, None, (0, 0, 0), takes_head(loss_fn))
            y = loss_at(loss_fn, model, y, targets) if stage.last else y
            marks.append(_now(device))
            stage.gradients.deferring = True
            torch.autograd.backward(y, torch.ones_like(y))
            owed = stage.gradients.take()
            marks.append(_now(device))
            WeightGradients.settle(owed)
            marks.append(_now(device))
        return {k: end - start for k, start, end in zip(KINDS, marks, marks[1:])}

    return run


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def main(arguments: list[str]) -> None:
    """Measure what a `config.json` describes on this machine's first device."""
    config, out = arguments
    with open(config, encoding="utf-8") as file:
        experiment = from_dict(json.load(file), trust=os.environ.get(TRUSTED) == "1")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()  # as the ranks do
    torch.manual_seed(0)
    with repeatable(experiment.deterministic, device):
        result = measure(experiment, device)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(result, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1:])
