"""What our interpreter costs: a step of `First` through `Pipeline` beside the plainest loop over the same model.

Both accumulate the same four microbatches. Rounds are interleaved by pytest-benchmark's groups; compare medians of one run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from forgather_dsl import Experiment, Llama, Muon, patch
from forgather_dsl.dsl import build
from forgather_dsl.models.init import initialise
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.schedules import accumulate
from forgather_dsl.train.loss import CrossEntropy
from forgather_dsl.train.optim import parameter_groups

MICROBATCHES = 4


class Shape(Experiment):
    """The model of the first experiment."""

    steps = 1
    model = patch(Llama, dim=128, num_layers=4, num_heads=4)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 4096, (8, 129), generator=generator)
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def _ours() -> Callable[[], Any]:
    with torch.device("meta"):
        model: Any = build(Shape().model)
    stage = Stage(model, 0, 1, range(4), torch.device("cpu"))
    initialise(model, 0)
    pipeline, loss, (tokens, targets) = Pipeline([stage], accumulate(MICROBATCHES), 0), CrossEntropy(), _batch()

    def step() -> None:
        pipeline.step(tokens, targets, None, loss, 0, targets.numel())
        for _, parameter in pipeline.named_parameters():
            parameter.grad = None

    return step


def _plain() -> Callable[[], Any]:
    model: Any = build(Shape().model)
    initialise(model, 0)
    loss, (tokens, targets) = CrossEntropy(), _batch()

    def step() -> None:
        for x, y in zip(tokens.chunk(MICROBATCHES), targets.chunk(MICROBATCHES), strict=True):
            (loss(model(x), y) / targets.numel()).backward()
        model.zero_grad(set_to_none=True)

    return step


@pytest.mark.benchmark(group="forward and backward of one step")
@pytest.mark.parametrize("make", [_plain, _ours], ids=["plain autograd", "interpreter, deferred weight gradients"])
def test_step(benchmark: Any, make: Callable[[], Callable[[], Any]]) -> None:
    benchmark.pedantic(make(), rounds=15, warmup_rounds=2)


@pytest.mark.benchmark(group="one Muon step over the matrices of First")
@pytest.mark.parametrize("kind", ["torch.optim.Muon (bfloat16)", "ours (32 bits)"])
def test_muon(benchmark: Any, kind: str) -> None:
    model: Any = build(Shape().model)
    initialise(model, 0)
    matrices = {name: p for name, p in model.named_parameters() if "proj" in name}
    for parameter in matrices.values():
        parameter.grad = torch.randn_like(parameter)
    ours = build(Muon(), params=parameter_groups(matrices.items()))
    theirs = torch.optim.Muon([*matrices.values()], lr=0.02)
    benchmark.pedantic((ours if "ours" in kind else theirs).step, rounds=5, warmup_rounds=1)
