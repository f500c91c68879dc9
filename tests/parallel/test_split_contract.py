"""Splitting a backward changes no gradient, in whatever way the layers are run, and leaves no layer untrained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from forgather_dsl import GroupedQueryAttention, LayerNorm, Llama, RMSNorm
from forgather_dsl.dsl import build
from forgather_dsl.models.init import initialise
from forgather_dsl.models.parts import part_of
from forgather_dsl.parallel.deferred import DeferredLinear, defer
from forgather_dsl.parallel.weight_gradients import WeightGradients

MICROBATCHES, VOCAB = 3, 40


class Net(nn.Module):
    """A small Llama with biases, normalised queries, grouped heads, run in one of several ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        attention = GroupedQueryAttention(bias=True, qk_norm=RMSNorm())
        norm = LayerNorm() if how == "autocast" else RMSNorm()  # LayerNorm gives fp32 under autocast: inputs are cast
        model: Any = build(
            Llama(
                dim=32, num_layers=2, num_heads=4, num_kv_heads=2, ffn_dim=48, vocab_size=VOCAB, attention=attention,
                norm=norm, tie_embeddings=how == "tied",
            )
        )  # fmt: skip
        initialise(model, 0)
        self.model, self.how = model, how
        if how == "several uses":
            self.model.layers[1] = self.model.layers[0]
        if how == "frozen":
            for name, parameter in self.named_parameters():
                parameter.requires_grad_("q_proj" in name or "down_proj" in name or "norm" in name)
        self.layer, self.num_forwards = self.one, 0

    def compile(self) -> None:  # type: ignore[override]
        torch._dynamo.reset()
        self.layer = torch.compile(self.one, backend="aot_eager")

    def one(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if not torch.compiler.is_compiling():
            self.num_forwards += 1
        return layer(x, self.model.context(x.shape[1], 0, None, "cpu"), None)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = part_of(self.model, "embed")(ids)
        x = x.bfloat16() if self.how == "autocast" else x  # as a stage does
        for layer in self.model.layers:
            if "checkpointed" in self.how:
                x = checkpoint(self.layer, layer, x, use_reentrant=False)
            else:
                x = self.layer(layer, x)
        return part_of(self.model, "head")(part_of(self.model, "norm")(x))


def gradients_of(how: str, kinds: str) -> dict[str, torch.Tensor | None]:
    """By autograd (kinds ""), by full backwards ("B"), or by I of all microbatches and then W ("IW")."""
    net, owed = Net(how), []
    deferred = defer(net) if kinds else None
    if deferred and "compiled" in how:
        net.compile()
    generator = torch.Generator().manual_seed(1)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast", cache_enabled=False)
    offload = torch.autograd.graph.saved_tensors_hooks(torch.clone, torch.clone)
    for _ in range(MICROBATCHES):
        ids = torch.randint(VOCAB, (2, 7), generator=generator)
        if deferred:
            deferred.deferring = kinds == "IW"
        with autocast:
            if how == "offloaded":
                with offload:
                    y = net(ids)
            else:
                y = net(ids)
        (y.float() ** 2).sum().backward()
        if deferred and kinds == "IW":
            owed.append(deferred.take())
            linears = [m for m in net.modules() if isinstance(m, DeferredLinear) and m.weight.requires_grad]
            assert len(owed[-1]) >= len(linears) > 0
    for one in owed:
        WeightGradients.settle(one)
    return {name: parameter.grad for name, parameter in net.named_parameters()}


# Largest difference from autograd, in parts of the parameter's largest gradient. fp32: measured up to 3.3e-7, since we sum
# over microbatches inside the product. bf16: measured up to 2.0e-3.
BOUNDS = {"autocast": 1e-2}
WAYS = [
    "plain", "checkpointed", "compiled", "checkpointed compiled", "offloaded", "tied", "frozen", "autocast",
    "several uses",
]  # fmt: skip


@pytest.mark.parametrize("how", WAYS)
def test_split_gradients_are_those_of_a_full_backward_bit_for_bit_and_autograds_within_a_bound(how: str) -> None:
    expected, full, split = gradients_of(how, ""), gradients_of(how, "B"), gradients_of(how, "IW")
    assert expected.keys() == full.keys() == split.keys()
    assert any(gradient is not None for gradient in expected.values())
    for name, gradient in expected.items():
        one, other = full[name], split[name]
        if gradient is None:
            assert one is None, name
            assert other is None, name
            continue
        assert one is not None, name
        assert other is not None, name
        assert torch.equal(one, other), name
        assert gradient.abs().max() > 0, name  # every layer is really trained
        largest = float((other - gradient).abs().max() / gradient.abs().max())
        assert largest < BOUNDS.get(how, 2e-6), name


@pytest.mark.parametrize("how", ["plain", "checkpointed"])
def test_a_layer_runs_forward_once_in_f_once_more_in_i_if_checkpointed_and_never_in_w(how: str) -> None:
    net = Net(how)
    deferred = defer(net)
    deferred.deferring = True
    y = net(torch.arange(14).view(2, 7))
    counts = [net.num_forwards]
    y.sum().backward()
    counts.append(net.num_forwards)
    deferred.settle(deferred.take())
    counts.append(net.num_forwards)
    layers = len(net.model.layers)
    assert counts == ([layers, 2 * layers, 2 * layers] if how == "checkpointed" else [layers] * 3)
