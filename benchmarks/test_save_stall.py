"""What saving costs training: ten steps of a model of 50M parameters with one save, over ten steps without.

`python benchmarks/test_save_stall.py [--rounds 5]` prints the table. A round times the three cases in turn (no save, in the
background, between steps), each ten steps of training and waiting for the save to be over if it takes longer than that;
a ratio pairs two times of one round. The aim is 1.05 in the background.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from forgather_dsl.parallel.launch import ENVIRONMENT

for name, value in ENVIRONMENT.items():  # as in a run; read when torch is loaded
    os.environ.setdefault(name, value)
import torch  # noqa: E402

from forgather_dsl import AdamW, Experiment, Llama, patch  # noqa: E402
from forgather_dsl.dsl import build, replace  # noqa: E402
from forgather_dsl.models.init import initialise  # noqa: E402
from forgather_dsl.parallel.interpreter import Pipeline  # noqa: E402
from forgather_dsl.parallel.stage import Stage  # noqa: E402
from forgather_dsl.plan.schedules import accumulate  # noqa: E402
from forgather_dsl.train.checkpoint import Contents, Saver  # noqa: E402
from forgather_dsl.train.checkpoint.snapshot import source  # noqa: E402
from forgather_dsl.train.loss import CrossEntropy  # noqa: E402
from forgather_dsl.train.optim import parameter_groups  # noqa: E402

INTERVAL = 10  # steps
VOCAB, SEQ = 11_000, 256
CPU = torch.device("cpu")
CASES = ("no save", "background", "between steps")


class Shape(Experiment):
    """The model of the benchmark: 50M parameters, 600 MB with AdamW's state."""

    steps = 1
    model = patch(Llama, dim=512, num_layers=12, num_heads=8, ffn_dim=1408, vocab_size=VOCAB)


class _Alone:
    rank, world = 0, 1

    def gather(self, value: Any) -> list[Any]:
        return [value]


class _Training:
    """Steps of one process, as the training loop makes them."""

    def __init__(self, microbatches: int, device: torch.device = CPU, **sizes: int) -> None:
        self.device, spec = device, replace(Shape().model, **sizes)
        with torch.device("meta"):
            model: Any = build(spec)
        stage = Stage(model, 0, 1, range(spec.num_layers), device)
        initialise(model, 0)
        self.pipeline, self.loss = Pipeline([stage], accumulate(microbatches), 0), CrossEntropy()
        self.parameters = dict(self.pipeline.named_parameters())
        self.optimizer: Any = build(AdamW(), params=parameter_groups(self.parameters.items()))
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, VOCAB, (microbatches, SEQ + 1), generator=generator)
        self.batch = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def settle(self) -> None:
        """Until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def step(self, before_update: Callable[[], None]) -> None:
        self.pipeline.step(*self.batch, None, self.loss, 0, self.batch[1].numel())
        before_update()
        self.optimizer.step()
        for parameter in self.parameters.values():
            parameter.grad = None

    def contents(self, step: int) -> Contents:
        sources = [source(f"weights/{name}", parameter) for name, parameter in self.parameters.items()]
        for name, _, state in self.optimizer.named_states():
            sources += [source(f"optimizer/{name}/{key}", tensor) for key, tensor in state.items()]
        return Contents(step, sources)


class Block(NamedTuple):
    """INTERVAL steps, with the save that comes before the first."""

    wall: float  # seconds
    cpu: float  # processor seconds of all threads: what saving takes, whatever else the machine does
    stalled: float  # seconds in which training stood still: in `save`, `before_update`, and waiting at the end


def _block(training: _Training, saver: Saver | None, number: int) -> Block:
    stalled = 0.0

    def timed(call: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal stalled
        start = time.perf_counter()
        result = call(*arguments)
        stalled += time.perf_counter() - start
        return result

    training.settle()
    started, busy = time.perf_counter(), time.process_time()
    if saver is not None:
        timed(saver.save, training.contents(number))
    for _ in range(INTERVAL):
        training.step((lambda: timed(saver.before_update)) if saver is not None else lambda: None)
    if saver is not None and (failure := timed(saver.finish)) is not None:
        raise RuntimeError(failure)
    training.settle()
    return Block(time.perf_counter() - started, time.process_time() - busy, stalled)


def measure(
    rounds: int, microbatches: int, folder: str, device: torch.device = CPU, **sizes: int
) -> dict[str, list[Block]]:
    """Of each case, per round. `sizes` change the model."""
    training = _Training(microbatches, device, **sizes)
    for _ in range(2):
        training.step(lambda: None)  # memory is made
    found: dict[str, list[Block]] = {case: [] for case in CASES}
    for round_ in range(rounds):
        for case in CASES[round_ % 3 :] + CASES[: round_ % 3]:
            saver = (
                None if case == "no save" else Saver(folder, _Alone(), background=case == "background", device=device)
            )
            found[case].append(_block(training, saver, len(found[case])))
    return found


def save_stall(rounds: int, microbatches: int) -> str:
    """The table, in markdown."""
    with tempfile.TemporaryDirectory() as folder:
        found = measure(rounds, microbatches, folder)
    rows = ["| case | s per step | stalled, s | / no save | processor time / no save |", "|---|---|---|---|---|"]
    for case, blocks in found.items():
        pairs = list(zip(blocks, found["no save"], strict=True))
        step = statistics.median(block.wall for block in blocks) / INTERVAL
        stalled = statistics.median(block.stalled for block in blocks)
        wall, cpu = (_spread([one[at] / other[at] for one, other in pairs]) for at in (0, 1))
        rows.append(f"| {case} | {step:.2f} | {stalled:.2f} | {wall} | {cpu} |")
    return "\n".join(rows)


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} [{min(ratios):.3f}-{max(ratios):.3f}]"


@pytest.mark.benchmark(group="ten steps of training with a save")
def test_save_stall(benchmark: Any) -> None:
    benchmark.extra_info["table"] = benchmark.pedantic(save_stall, args=(2, 4), rounds=1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--microbatches", type=int, default=4)
    a = parser.parse_args()
    parameters = sum(parameter.numel() for parameter in _Training(1).parameters.values())
    print(
        f"{parameters / 1e6:.1f}M parameters, fp32, AdamW, {a.microbatches} microbatches of {SEQ} tokens, a save every "
        f"{INTERVAL} steps, {a.rounds} rounds, {torch.get_num_threads()} threads; median [lowest-highest]\n"
    )
    print(save_stall(a.rounds, a.microbatches))


if __name__ == "__main__":
    main()
