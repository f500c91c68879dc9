"""What weights of two bytes and states of one cost in quality: the same tokens, three seeds, bits per byte beside fp32.

`python benchmarks/test_optimizers.py [--seeds 0 1 2] [--steps 200] [--tuning 60] [--out results.json]` prints two tables: a small
Llama from the start, and from the end of the fp32 run at a finetuning rate. Weights and gradients have the format under
test; products are in fp32, as a processor without bfloat16 units takes thirty times as long for them. Finished runs are
kept in `--out`, and are not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from forgather_dsl import BF16, FP32, Adafactor, AdamW, Experiment, Llama, TrainedBPE, patch
from forgather_dsl.data.loader import Loader
from forgather_dsl.dsl import build, replace
from forgather_dsl.models.init import initialise
from forgather_dsl.train.assembly import make_optimizer
from forgather_dsl.train.gradients import clip, sum_of_squares
from forgather_dsl.train.prepare import Prepared, prepare

PRETRAINING, FINETUNING = 3e-3, 2e-5
EVAL_BATCHES = 24
REFERENCE = "fp32 AdamW"
RECIPES: dict[str, tuple[Any, Any]] = {
    REFERENCE: (AdamW(), FP32()),
    "AdamW 8-bit, exact low bits": (AdamW(states="8bit"), BF16()),
    "AdamW 8-bit, stochastic": (AdamW(states="8bit"), BF16(rounding="stochastic")),
    "AdamW bf16 states, stochastic": (AdamW(states="bf16"), BF16(rounding="stochastic")),
    "AdamW, Kahan": (AdamW(), BF16(rounding="kahan")),
    "fp32 Adafactor": (Adafactor(), FP32()),
    "Adafactor, stochastic": (Adafactor(), BF16(rounding="stochastic")),
    "AdamW, nearest": (AdamW(), BF16(rounding="nearest")),
}


class Small(Experiment):
    """A run takes about a quarter of a minute of a processor."""

    steps, seq_len, batch_size = 200, 128, 8
    tokenizer = patch(TrainedBPE, vocab_size=512)
    model = patch(Llama, dim=64, num_layers=2, num_heads=4, ffn_dim=192)


class Trained:
    """An fp32 model whose values are those of weights in the format under test, which the optimizer updates."""

    def __init__(self, experiment: Experiment, seed: int) -> None:
        self.model: Any = build(experiment.model)
        initialise(self.model, seed)
        kept = build(experiment.precision).parameters
        named = dict(self.model.named_parameters())
        self.computed = named
        self.weights = {n: torch.nn.Parameter(p.detach().to(kept, copy=True)) for n, p in named.items()}
        self.optimizer = make_optimizer(replace(experiment, seed=seed), self.weights)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    @torch.no_grad()
    def show(self) -> None:
        """Give the model the weights as they are now."""
        for name, parameter in self.computed.items():
            parameter.copy_(self.weights[name])

    def step(self, tokens: torch.Tensor, targets: torch.Tensor, factor: float) -> None:
        """One update, clipped to a norm of 1."""
        self.show()
        self.model.zero_grad(set_to_none=True)
        nats(self.model, tokens, targets).backward()
        for name, parameter in self.computed.items():
            assert parameter.grad is not None
            self.weights[name].grad = parameter.grad.to(self.weights[name].dtype)
        everyone = list(self.weights.values())
        clip(everyone, float(sum(sum_of_squares(p.grad) for p in everyone)) ** 0.5, 1.0)  # type: ignore[arg-type]
        for group, lr in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = lr * factor
        self.optimizer.step()


def nats(model: Any, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean over targets that count."""
    return torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), ignore_index=-100)


def loader(experiment: Experiment, data: Prepared, seed: int, *, held_out: bool) -> Loader:
    """Batches of training text in an order of the seed, or of held-out text."""
    file = data.held_out if held_out else data.train
    assert file is not None
    return Loader(
        tokens=file, seq_len=experiment.seq_len, batch_size=experiment.batch_size, seed=seed, shuffle=not held_out,
        eos_id=data.tokenizer.eos_id, documents=False, rank=0, replicas=1,
    )  # fmt: skip


@torch.no_grad()
def bits_per_byte(trained: Trained, experiment: Experiment, data: Prepared) -> float:
    """Of the first batches of held-out text, by that text's own number of tokens for a byte."""
    trained.show()
    losses = []
    for batch, _ in zip(loader(experiment, data, 0, held_out=True).eval_batches(), range(EVAL_BATCHES)):
        losses.append(float(nats(trained.model, torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets))))
    assert data.held_out is not None
    return statistics.fmean(losses) / math.log(2) * data.held_out.num_tokens / data.held_out.num_bytes


def train(experiment: Experiment, data: Prepared, seed: int, steps: int, start: dict[str, Any] | None) -> Trained:
    """From `start`, at a constant rate, with batches of another seed; else from new weights, warming up and cooling down."""
    trained = Trained(experiment, seed)
    for name, value in (start or {}).items():
        trained.optimizer.set_master(name, value)
    batches = loader(experiment, data, seed + 100 * (start is not None), held_out=False)
    for step in range(steps):
        done = (step + 1) / steps
        warmup, cosine = min(1.0, done / 0.05), 0.1 + 0.45 * (1 + math.cos(math.pi * done))
        batch = batches.next_batch()
        factor = 1.0 if start is not None else min(warmup, cosine)
        trained.step(torch.from_numpy(batch.tokens), torch.from_numpy(batch.targets), factor)
    return trained


def compared(
    seeds: int, steps: int, tuning: int, out: Path | None, recipes: dict[str, Any] = RECIPES
) -> dict[str, Any]:
    """{regime: {recipe: {seed: bits per byte}}}; finetuning has the start's under `before`."""
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(out.read_text()) if out is not None and out.exists() else {}
    data = prepare(Small())
    for seed in seeds:
        start: dict[str, Any] | None = None
        for regime, lr in (("pretraining", PRETRAINING), ("finetuning", FINETUNING)):
            for name, (optimizer, precision) in recipes.items():
                done = found.setdefault(regime, {}).setdefault(name, {})
                if str(seed) in done and (name != REFERENCE or regime == "finetuning"):
                    continue
                experiment = Small(optimizer=replace(optimizer, lr=lr), precision=precision)
                since, tuned = time.process_time(), regime == "finetuning"
                trained = train(experiment, data, seed, tuning if tuned else steps, start if tuned else None)
                done[str(seed)] = bits_per_byte(trained, experiment, data)
                if name == REFERENCE and not tuned:
                    start = {n: p.detach().clone() for n, p in trained.weights.items()}
                    found.setdefault("before", {})[str(seed)] = done[str(seed)]
                print(
                    f"{regime} {seed} {name}: {done[str(seed)]:.5f} ({time.process_time() - since:.0f} s)", flush=True
                )
                if out is not None:
                    out.write_text(json.dumps(found, indent=1))
    return found


def table(found: dict[str, Any], regime: str) -> list[str]:
    """Rows of Markdown: mean, its spread over seeds, and the gap to fp32 of the same seed with its own."""
    lines = ["| | bits per byte | over fp32 AdamW | of its gain |", "|---|---|---|---|"]
    plain, before = found[regime][REFERENCE], found["before"]
    for name, values in found[regime].items():
        gaps = [values[seed] - plain[seed] for seed in plain]
        gain = "" if regime == "pretraining" else f"{_gain(values, before) / _gain(plain, before):.0%}"
        spread = f"{statistics.fmean(values.values()):.4f} ± {statistics.stdev(values.values()):.4f}"
        lines.append(f"| {name} | {spread} | {statistics.fmean(gaps):+.4f} ± {statistics.stdev(gaps):.4f} | {gain} |")
    return lines


def _gain(values: dict[str, float], before: dict[str, float]) -> float:
    return statistics.fmean(before[seed] - value for seed, value in values.items())


@pytest.mark.slow
def test_rounding_to_nearest_loses_what_exact_masters_keep() -> None:
    names = (REFERENCE, "AdamW 8-bit, exact low bits", "AdamW, nearest")
    found = compared((0, 1), 60, 20, None, {name: RECIPES[name] for name in names})
    assert len(table(found, "finetuning")) == 5
    tuned, before = found["finetuning"], found["before"]
    assert _gain(tuned["AdamW, nearest"], before) < 0.7 * _gain(tuned[REFERENCE], before)
    assert _gain(tuned["AdamW 8-bit, exact low bits"], before) > 0.8 * _gain(tuned[REFERENCE], before)


def main() -> None:
    """The tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--tuning", type=int, default=60)
    parser.add_argument("--out", type=Path)
    a = parser.parse_args()
    found = compared(a.seeds, a.steps, a.tuning, a.out)
    for regime in ("pretraining", "finetuning"):
        print(f"\n{regime}\n" + "\n".join(table(found, regime)))


if __name__ == "__main__":
    main()
