"""Stages whose layers are compiled: the same training within rounding, the same bits however the backward is split."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from forgather_dsl import GroupedQueryAttention, Llama, RMSNorm, UserError, build
from forgather_dsl.models.init import initialise
from forgather_dsl.parallel import compiled
from forgather_dsl.parallel import stage as stages
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.schedules import accumulate, from_csv
from forgather_dsl.train.loss import CrossEntropy

CPU, ROUNDING = torch.device("cpu"), 1e-5  # of the largest gradient of a tensor, in fp32
SPLIT = from_csv("0F0,0I0,0F1,0I1,0W0,0W1")
SPEC = Llama(
    dim=32, num_layers=3, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=50,
    attention=GroupedQueryAttention(qk_norm=RMSNorm()),
)  # fmt: skip


@pytest.fixture
def backend(monkeypatch, request):
    """Compiles by another backend than Inductor, which takes a C++ compiler and a minute."""
    name = getattr(request, "param", "aot_eager")
    torch._dynamo.reset()
    counters.clear()
    if name != "inductor":
        monkeypatch.setattr(stages, "compiled_layer", lambda: compiled.compiled_layer(name))
    yield name
    torch._dynamo.reset()


def pipeline(schedule, compile=False, recompute="none"):
    with torch.device("meta"):
        model = build(SPEC)
    stage = Stage(model, 0, 1, range(3), CPU, None, recompute)
    initialise(stage.model, 0)
    if compile:
        stage.compile()
    return Pipeline([stage], schedule, seed=0)


def step(made):
    """Loss and gradients of one step of two microbatches."""
    torch.manual_seed(1)
    tokens = torch.randint(50, (4, 12))
    loss = made.step(tokens, tokens.roll(-1, 1), None, CrossEntropy(), 0, tokens.numel())
    return loss, {name: p.grad.clone() for name, p in made.named_parameters()}


def far(found, expected):
    return [n for n in found if float((found[n] - expected[n]).abs().max() / expected[n].abs().max()) > ROUNDING]


def same(found, expected):
    return found[0] == expected[0] and all(torch.equal(found[1][n], expected[1][n]) for n in expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"], indirect=True)
def test_compiled_layers_train_alike_split_whole_and_recomputed(backend):
    plain, whole = step(pipeline(accumulate(2))), step(pipeline(accumulate(2), compile=True))
    graphs = counters["stats"]["unique_graphs"]
    assert 0 < graphs < 15  # as many as one layer has: three layers share them
    assert abs(whole[0] / plain[0] - 1) < ROUNDING
    assert far(whole[1], plain[1]) == []
    assert same(step(pipeline(SPLIT, compile=True)), whole)
    assert same(step(pipeline(SPLIT, compile=True, recompute="full")), whole)
    assert counters["stats"]["unique_graphs"] == graphs


def test_evaluation_and_generation_compile_nothing(backend):
    made, plain = pipeline(accumulate(2), compile=True), pipeline(accumulate(2))
    tokens = torch.arange(40).view(4, 10)
    for size in (1, 2, 3):
        losses = [p.forward_only(tokens, tokens, None, CrossEntropy(), size) for p in (made, plain)]
        assert losses[0] == losses[1]
    assert len(made.sample(tokens[:1], 4, lambda logits: int(logits.argmax()))) == 4
    assert counters["stats"]["unique_graphs"] == 0


def test_a_machine_without_a_compiler_is_told_what_to_install(monkeypatch):
    def missing():
        from torch._inductor.exc import InvalidCxxCompiler

        raise InvalidCxxCompiler

    compiled.require_compiler(CPU)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", missing)
    with pytest.raises(UserError, match=r"apt install g\+\+ .*or write compile = False"):
        compiled.require_compiler(CPU)
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UserError, match="pip install triton, or write compile = False"):
        compiled.require_compiler(torch.device("cuda"))
