"""Products of float8 factors, worked out by a CPU: what is rounded, and that a split backward changes no bit of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn

from forgather_dsl import Llama, UserError, build
from forgather_dsl.models.init import initialise
from forgather_dsl.parallel.deferred import DeferredLinear, defer
from forgather_dsl.parallel.float8 import Float8Linear, require_float8, to_float8
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.weight_gradients import WeightGradients
from forgather_dsl.plan.schedules import from_csv
from forgather_dsl.train.loss import CrossEntropy

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
BF16_STEP = 2**-8


def setting(bias=True, layers=1):
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(64, 64, bias=bias) for _ in range(layers))).bfloat16()
    gradients = defer(net)
    to_float8(net)
    x = torch.randn(2, 32, 64).bfloat16().requires_grad_()
    return net, gradients, x, torch.randn(2, 32, 64).mul_(1e-3).bfloat16()


def rounded(x, dtype):
    """To `dtype` and back, scaled by a power of two so that the largest number just fits; in fp64."""
    exponent = torch.floor(torch.log2(torch.finfo(dtype).max / x.double().abs().max()))
    return (x.double() * 2**exponent).float().to(dtype).double() / 2**exponent


def near(found, expected):
    """Within rounding to bfloat16 of a sum taken in fp32."""
    return float((found.detach().double() - expected.detach()).abs().max() / expected.detach().abs().max()) < BF16_STEP


def test_the_three_products_are_those_of_rounded_factors():
    net, _, x, gradient = setting()
    y = net(x)
    y.backward(gradient)
    x8, w8, g8 = rounded(x, E4M3).flatten(0, 1), rounded(net[0].weight, E4M3), rounded(gradient, E5M2).flatten(0, 1)
    assert near(y.flatten(0, 1), x8 @ w8.t() + net[0].bias.double())
    assert near(x.grad.flatten(0, 1), g8 @ w8)
    assert near(net[0].weight.grad, g8.t() @ x8)
    assert near(net[0].bias.grad, gradient.double().sum((0, 1)))
    plain = x.detach().flatten(0, 1) @ net[0].weight.t()
    assert float((x8 @ w8.t() - plain.double()).abs().max()) > 4 * BF16_STEP  # and not of those that were not


@pytest.mark.parametrize("bias", [False, True])
def test_a_split_backward_has_the_bits_of_a_whole_one(bias):
    found = {}
    for deferring in (False, True):
        net, gradients, x, gradient = setting(bias, layers=3)
        with gradients.step():
            gradients.deferring = deferring
            for _ in range(2):
                net(x).backward(gradient)
                owed = gradients.take()
                assert len(owed) == 3 * deferring
                WeightGradients.settle(owed)
        found[deferring] = [x.grad, *(p.grad for p in net.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(found[False], found[True], strict=True))


@pytest.mark.parametrize("policy", ["norms_and_activation", "keep_attention", "full"])
def test_recomputing_changes_no_bit(policy):
    found = {}
    spec = Llama(dim=32, num_layers=2, num_heads=2, num_kv_heads=1, ffn_dim=48, vocab_size=50)
    tokens = torch.arange(64).view(2, 32) % 50
    for how in ("none", policy):
        with torch.device("meta"):
            model = build(spec).bfloat16()
        stage = Stage(model, 0, 1, range(2), torch.device("cpu"), None, how)
        initialise(stage.model, 0)
        to_float8(stage.model.layers)
        pipeline = Pipeline([stage], from_csv("0F0,0F1,0I0,0I1,0W0,0W1"), seed=0)
        loss = pipeline.step(tokens, tokens.roll(-1, 1), None, CrossEntropy(), 0, 64)
        found[how] = loss, {name: p.grad for name, p in pipeline.named_parameters()}
    assert found["none"][0] == found[policy][0]
    assert [n for n, g in found[policy][1].items() if not torch.equal(g, found["none"][1][n])] == []


def test_a_weight_is_looked_at_anew_after_a_step():
    net, gradients, x, _ = setting()
    with gradients.step():
        before = net(x)
    with torch.no_grad():
        net[0].weight.mul_(4)
        net[0].bias.mul_(4)
    with gradients.step():
        assert torch.equal(net(x), 4 * before)


def test_a_hook_sees_the_weight_gradient():
    net, _, x, gradient = setting()
    net(x).backward(gradient)
    other, _, x, gradient = setting()
    other[0].weight.register_hook(lambda g: 2 * g)
    other(x).backward(gradient)
    assert torch.equal(other[0].weight.grad, 2 * net[0].weight.grad)


def test_zeros_stay_zeros():
    net, _, x, gradient = setting(bias=False)
    y = net(torch.zeros_like(x))
    y.backward(torch.zeros_like(gradient))
    assert not y.count_nonzero()
    assert not net[0].weight.grad.count_nonzero()


def test_only_layers_whose_sizes_allow_it_are_changed():
    net = nn.Sequential(nn.Linear(64, 24), nn.Linear(24, 64), nn.Linear(64, 64))
    defer(net)
    to_float8(net)
    assert [type(layer) for layer in net] == [DeferredLinear, DeferredLinear, Float8Linear]
    odd = nn.Sequential(nn.Linear(24, 24))
    defer(odd)
    with pytest.raises(UserError, match="multiples of 16, and no linear layer of the blocks has such"):
        to_float8(odd)


def test_devices_without_float8_are_refused(monkeypatch):
    require_float8(torch.device("cpu"), emulate=True)
    with pytest.raises(
        UserError, match=r"takes a GPU with float8 products, and this rank is on cpu; write precision=BF16"
    ):
        require_float8(torch.device("cpu"), emulate=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 3090")
    with pytest.raises(UserError, match=r"8.9 or more .* and NVIDIA GeForce RTX 3090 has 8.6"):
        require_float8(torch.device("cuda"), emulate=True)


def test_torchao_gives_the_same_numbers():
    """Its layer with scales of powers of two; it keeps no weight gradient for W."""
    torchao = pytest.importorskip("torchao.float8")
    net, _, x, gradient = setting(bias=False)
    y = net(x)
    y.backward(gradient)
    torch.manual_seed(0)
    theirs = nn.Sequential(nn.Linear(64, 64, bias=False)).bfloat16()
    config = torchao.Float8LinearConfig(round_scales_to_power_of_2=True, emulate=True)
    theirs = torchao.convert_to_float8_training(theirs, config=config)
    other = x.detach().clone().requires_grad_()
    theirs(other).backward(gradient)
    assert near(theirs(other), y.double())
    assert near(other.grad, x.grad.double())
    assert near(theirs[0].weight.grad, net[0].weight.grad.double())
