"""Every recompute policy gives the bits of keeping everything, keeps the bytes it says, and runs nothing twice that it keeps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from standin import StandIn, fill
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from forgather_dsl import (
    GELUMLP,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    NoRope,
    ReLUSquaredMLP,
    RMSNorm,
    SlidingWindow,
    UserError,
)
from forgather_dsl.dsl import build
from forgather_dsl.models.init import initialise
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.weight_gradients import WeightGradients
from forgather_dsl.train.as_gpu import as_on_gpu
from forgather_dsl.train.live import LiveBytes

CPU = torch.device("cpu")
POLICIES = ("norms_and_activation", "keep_attention", "full")
SIZES = {"dim": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "ffn_dim": 48, "vocab_size": 40}
MODELS = {
    "llama": {},
    "dropout": {"dropout": 0.2},
    "attention dropout": {"dropout": 0.1, "attention": GroupedQueryAttention(dropout=0.2)},
    "layer norm": {"norm": LayerNorm(bias=True), "mlp": GELUMLP(bias=True)},
    "window": {"attention": SlidingWindow(window=5, qk_norm=RMSNorm()), "mlp": ReLUSquaredMLP()},
    "no rope": {"rope": NoRope(), "attention": GroupedQueryAttention(bias=True, qk_norm=LayerNorm())},
}


def stage_of(model: Any, policy: str, autocast: torch.dtype | None = None, **options: Any) -> Stage:
    if isinstance(model, StandIn):
        fill(model)
        return Stage(model, 0, 1, range(len(model.layers)), CPU, autocast, policy, **options)  # type: ignore[arg-type]
    with torch.device("meta"):
        built: Any = build(Llama(**SIZES | model))
    stage = Stage(built, 0, 1, range(len(built.layers)), CPU, autocast, policy, **options)  # type: ignore[arg-type]
    initialise(built, 0)
    return stage


def gradients(stage: Stage, deferring: bool = False, documents: bool = False) -> dict[str, torch.Tensor]:
    """Logits and gradients of one microbatch, through I and W or through B."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(20, (2, 17), generator=generator)
    ends = torch.randint(3, (2, 17), generator=generator).cumsum(1) if documents else None
    stage.model.train()
    with stage.gradients.step():
        y = stage.forward(ids, ends, (0, 1, 2))
        stage.gradients.deferring = deferring
        (y.float() ** 2).mean().backward()
        WeightGradients.settle(stage.gradients.take())
    return {"logits": y.detach()} | {name: p.grad for name, p in stage.named_parameters() if p.grad is not None}


def differing(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> list[str]:
    assert found.keys() == expected.keys()
    return [name for name in expected if not torch.equal(found[name], expected[name])]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("model", MODELS)
def test_bits_are_those_of_keeping_everything(model: str, policy: str) -> None:
    """In fp32 and under autocast, in one backward and in two, with and without documents."""
    for autocast in (None, torch.bfloat16):
        for deferring, documents in ((False, False), (True, True)):
            expected = gradients(stage_of(MODELS[model], "none", autocast), deferring, documents)
            assert len(expected) > 10
            assert differing(gradients(stage_of(MODELS[model], policy, autocast), deferring, documents), expected) == []


@pytest.mark.parametrize("policy", ["none", *POLICIES])
@pytest.mark.parametrize("model", ["llama", "window", "no rope"])
def test_what_went_to_the_host_comes_back_as_it_was(model: str, policy: str) -> None:
    for deferring in (False, True):
        expected = gradients(stage_of(MODELS[model], "none"), deferring, documents=True)
        stage = stage_of(MODELS[model], policy, offload=True)
        assert differing(gradients(stage, deferring, documents=True), expected) == []


@pytest.mark.parametrize("policy", ["none", *POLICIES])
@pytest.mark.parametrize("model", ["llama", "layer norm", "window"])
def test_tiles_give_the_same_bits_in_every_way_and_those_of_the_whole_up_to_rounding(model: str, policy: str) -> None:
    """34 tokens in three tiles, the last one smaller."""
    whole = gradients(stage_of(MODELS[model], "none"))
    tiled = gradients(stage_of(MODELS[model], "none", mlp_tiles=3))
    for name, value in whole.items():
        assert (tiled[name] - value).abs().max() <= 1e-6 * value.abs().max(), name
    for deferring in (False, True):
        assert differing(gradients(stage_of(MODELS[model], policy, mlp_tiles=3), deferring), tiled) == []


def test_an_mlp_in_tiles_must_be_one_and_draw_nothing() -> None:
    made = StandIn(layers=1)
    with pytest.raises(UserError, match="a Block has no module `mlp` to run in tiles"):
        stage_of(made, "none", mlp_tiles=2)
    made = StandIn(layers=1)
    made.layers[0].mlp = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5))
    with pytest.raises(UserError, match="an MLP with dropout draws other numbers in tiles"):
        stage_of(made, "none", mlp_tiles=2)


class Nested(nn.Module):
    """A user's layer that checkpoints a part of itself, and ends with no linear layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor, context: Any, cache: Any) -> torch.Tensor:
        hidden = checkpoint(lambda x: self.down(F.silu(self.up(x))), x, use_reentrant=False)
        q = hidden.unflatten(-1, (2, -1)).transpose(1, 2)
        return x * self.scale + F.scaled_dot_product_attention(q, q, q, is_causal=True).transpose(1, 2).flatten(2)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("nested", [False, True])
def test_models_that_are_not_ours_train_the_same(policy: str, nested: bool) -> None:
    def model() -> StandIn:
        made = StandIn(layers=2, dropout=0.2)
        if nested:
            made.layers = nn.ModuleList(Nested(16) for _ in range(2))
        return made

    for deferring in (False, True):
        expected = gradients(stage_of(model(), "none"), deferring)
        assert differing(gradients(stage_of(model(), policy), deferring), expected) == []


class Calls(TorchDispatchMode):
    """Counts what a backward computes."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def computed(policy: str, deferring: bool, **options: Any) -> dict[str, int]:
    """Matrix products, attentions and activation functions of I and W, or of B, of two layers."""
    stage = stage_of({}, policy, **options)
    y = stage.forward(torch.zeros(2, 8, dtype=torch.long), None, (0, 0, 0)).sum()
    stage.gradients.deferring = deferring
    with Calls() as calls:
        y.backward()
        WeightGradients.settle(stage.gradients.take())
    names = {"products": ("mm", "addmm", "addmm_", "bmm"), "silu": ("silu",)}
    names["attention"] = ("_scaled_dot_product_flash_attention_for_cpu",)
    return {kind: sum(calls.counts[name] for name in which) for kind, which in names.items()}


@pytest.mark.parametrize("deferring", [False, True])
def test_what_is_kept_is_not_computed_again_and_nothing_runs_three_times(deferring: bool) -> None:
    """Seven products a layer; of the seventh, at the end of a layer, nobody asks for the result."""
    plain = computed("none", deferring)
    assert plain == {"products": 2 * 7 * 2 + 2, "silu": 0, "attention": 0}
    again = {"norms_and_activation": (0, 2, 0), "keep_attention": (2 * 6, 2, 0), "full": (2 * 6, 2, 2)}
    for policy, (products, silu, attention) in again.items():
        expected = {"products": plain["products"] + products, "silu": silu, "attention": attention}
        assert computed(policy, deferring) == expected, policy


@pytest.mark.parametrize("policy", ["none", "full"])
def test_tiles_run_the_mlp_once_more_and_its_last_product_for_one_tile(policy: str) -> None:
    """Of a tile's nine products (three forward, six backward), all tiles but the first leave out the third."""
    tiled, whole = (computed(policy, False, mlp_tiles=tiles)["products"] for tiles in (4, 1))
    assert whole == 2 * (7 * 2) + 2 + {"none": 0, "full": 2 * 6}[policy]
    assert tiled == 2 * (4 * 2 + 4 * 9 - 3) + 2 + {"none": 0, "full": 2 * 4}[policy]


@pytest.mark.parametrize(
    ("policy", "kib"), [("none", 164.1), ("norms_and_activation", 92.1), ("keep_attention", 16.1), ("full", 8.0)]
)
def test_bytes_between_forward_and_backward_of_a_layer_of_llama_31_8b(policy: str, kib: float) -> None:
    """KiB per token on a GPU, in bfloat16: what research of such layers counts by formula, here by its storages."""
    sizes = {"dim": 4096, "num_heads": 32, "num_kv_heads": 8, "ffn_dim": 14_336, "vocab_size": 8, "num_layers": 2}
    live, tokens = LiveBytes(), 512
    with torch.device("meta"):
        built: Any = build(Llama(**sizes)).to(torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_gpu():
        stage = Stage(built, 1, 3, range(2), CPU, None, policy)  # type: ignore[arg-type]
        for known in (*stage.model.parameters(), *stage._context(tokens, None).rope):
            live.hold(known, "known")
        x = torch.zeros(1, tokens, 4096, dtype=torch.bfloat16, requires_grad=True)
        live.hold(x, "other")
        with live:
            y = stage.forward(x, None, (0, 0, 0))
    kept = live.kinds["other"] - 2 * tokens * 4096  # its output is the next stage's
    assert y.shape == x.shape
    assert kept / 2 / tokens / 1024 == pytest.approx(kib, abs=0.05)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_graph_may_be_gone_over_twice(policy: str) -> None:
    found = []
    for how in ("none", policy):
        stage = stage_of({}, how)
        y = stage.forward(torch.zeros(2, 8, dtype=torch.long), None, (0, 0, 0)).sum()
        y.backward(retain_graph=True)
        y.backward()
        found.append({name: p.grad for name, p in stage.named_parameters() if p.grad is not None})
    assert differing(*found) == []


class Changing(StandIn):
    """Changes in place what a product needs in its backward, or does something else every time."""

    def __init__(self, how: str) -> None:
        super().__init__(layers=1)
        self.layers = nn.ModuleList([Changes(how)])


class Changes(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.runs, self.scale = how, 0, nn.Parameter(torch.ones(16))

    def forward(self, x: torch.Tensor, context: Any, cache: Any) -> torch.Tensor:
        self.runs += 1
        if self.how == "each time":
            return torch.stack([x * self.scale for _ in range(self.runs)]).sum(0)
        hidden = x + self.scale
        y = hidden * self.scale
        hidden.add_(1.0)
        return y


def test_a_layer_that_changes_what_its_backward_needs_is_an_error_as_it_is_without_a_policy() -> None:
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(stage_of(Changing("in place"), "none"))
    with pytest.raises(RuntimeError, match="changed in place after the layer had used it"):
        gradients(stage_of(Changing("in place"), "norms_and_activation"))


def test_a_layer_that_does_something_else_the_second_time_is_an_error() -> None:
    stage = stage_of(Changing("each time"), "full")
    stage.model.layers[0].runs = 2  # the first run makes three products, the second four
    y = stage.forward(torch.zeros(2, 4, dtype=torch.long), None, (0, 0, 0)).sum()
    stage.model.layers[0].runs = 0
    with pytest.raises(RuntimeError, match="its forward must do the same whenever it has the same input"):
        y.backward()
