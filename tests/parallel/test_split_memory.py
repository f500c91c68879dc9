"""Bytes that a stage really holds after F, I and W, by the allocator's own count, beside the plan's formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from forgather_dsl import GroupedQueryAttention, LayerNorm, Llama, Norm, ReLUSquaredMLP, RMSNorm
from forgather_dsl.dsl import build
from forgather_dsl.models.init import initialise
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.sizes import model_size

T = TypeVar("T")
BATCH, SEQ, DIM, VOCAB, STAGES = 2, 16, 32, 40, 3


def counted(function: Callable[[], T]) -> tuple[T, int]:
    """What `function` returns, and the bytes that are allocated more, or fewer, after it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = function()
    return result, sum(event.self_cpu_memory_usage for event in found.key_averages())


def spec(norm: Norm, mlp: Any = None) -> Llama:
    more = {} if mlp is None else {"mlp": mlp}
    attention = GroupedQueryAttention(bias=True)
    return Llama(
        dim=DIM, num_layers=6, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=VOCAB, norm=norm,
        attention=attention, **more,
    )  # fmt: skip


def stage_of(model: Llama, index: int, autocast: torch.dtype | None, recompute: Any) -> Stage:
    with torch.device("meta"):
        built: Any = build(model)
    layers = range(2 * index, 2 * index + 2)
    stage = Stage(built, index, STAGES, layers, torch.device("cpu"), autocast, recompute)
    initialise(built, 0)
    for _, parameter in stage.named_parameters():
        parameter.grad = torch.zeros_like(parameter)
    return stage


def held(stage: Stage) -> list[int]:
    """Bytes of one microbatch after F, after I and after W, beyond its input."""
    ids = torch.randint(VOCAB, (BATCH, SEQ), generator=torch.Generator().manual_seed(0))
    x = ids if stage.first else torch.randn(BATCH, SEQ, DIM, dtype=stage.dtype).requires_grad_()

    def forward() -> list[torch.Tensor]:
        y = stage.forward(x, None, (0, 0, 0))
        return [(y.float() ** 2).sum() if stage.last else y]

    def backward() -> Any:
        y = outputs.pop()
        torch.autograd.backward(y, torch.ones_like(y))
        return stage.gradients.take()

    stage.gradients.deferring = True
    outputs, after_f = counted(forward)
    owed, more = counted(backward)
    after_i = after_f + more - (0 if x.grad is None else x.grad.nbytes)  # which goes to the stage before
    _, more = counted(lambda: stage.gradients.settle(owed))
    return [after_f, after_i, after_i + more]


@pytest.mark.parametrize(
    ("recompute", "index"),
    [
        ("none", 0),
        ("full", STAGES - 1),
        *(
            pytest.param(policy, index, marks=pytest.mark.slow)
            for policy in ("none", "full")
            for index in range(STAGES)
            if (policy, index) not in (("none", 0), ("full", STAGES - 1))
        ),
        ("norms_and_activation", 1),
        ("keep_attention", 2),
    ],
)
@pytest.mark.parametrize(
    ("norm", "mlp", "autocast"),
    [(RMSNorm(), None, None), (LayerNorm(), None, torch.bfloat16), (RMSNorm(), ReLUSquaredMLP(), torch.bfloat16)],
)
def test_between_i_and_w_a_stage_holds_what_the_plan_counts_to_the_byte_and_after_w_nothing(
    norm: Norm, mlp: Any, autocast: torch.dtype | None, recompute: str, index: int
) -> None:
    """Inputs of linear layers, shared ones once (also where autocast makes copies of them), and output gradients."""
    model = spec(norm, mlp)
    stage, size = stage_of(model, index, autocast, recompute), model_size(model, SEQ)
    parts = [size.layers[number].owed for number in stage.layers]
    parts += [size.embedding.owed] * stage.first + [size.head.owed] * stage.last
    expected = BATCH * SEQ * sum(parts) * (2 if autocast else 4)
    with stage.gradients.step():
        held(stage)  # the first casts the weights
        after_f, after_i, after_w = held(stage)
    assert after_i == expected
    assert after_w == 0
    assert after_f > 0
