"""Deferred layers give autograd's gradients, at once or later, and hold nothing they do not need."""

from __future__ import annotations

import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn as nn
from torch.utils.checkpoint import checkpoint

from forgather_dsl.parallel.deferred import DeferredEmbedding, DeferredLinear, defer
from forgather_dsl.parallel.weight_gradients import WeightGradients

DIM, VOCAB = 24, 40


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.up, self.down = nn.Linear(DIM, 3 * DIM), nn.Linear(3 * DIM, DIM, bias=False)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Net(nn.Module):
    def __init__(self, recompute=False):
        super().__init__()
        torch.manual_seed(0)
        self.recompute = recompute
        self.embed = nn.Embedding(VOCAB, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, ids):
        x = self.embed(ids)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


def microbatches(count=3):
    return torch.randint(VOCAB, (count, 2, 7), generator=torch.Generator().manual_seed(1))


def run(net, gradients=None, split=False):
    """Backward of all microbatches; with `split`, I of all of them first, then W."""
    owed = []
    for ids in microbatches():
        if gradients:
            gradients.deferring = split
        (net(ids) ** 2).sum().backward()
        if split:
            owed.append(gradients.take())
    for one in owed:
        gradients.settle(one)
    return {name: parameter.grad for name, parameter in net.named_parameters()}


def test_gradients_are_those_of_autograd():
    plain, net = run(Net()), Net()
    found = run(net, defer(net))
    assert found.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("recompute", [False, True])
def test_weight_gradients_later_are_bit_identical_to_at_once(recompute):
    now, later = Net(), Net(recompute)
    expected, found = run(now, defer(now)), run(later, defer(later), split=True)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_recomputing_runs_each_block_once_more_and_never_in_w():
    net = Net(recompute=True)
    gradients = defer(net)
    gradients.deferring = True
    net(microbatches()[0]).sum().backward()
    assert [block.calls for block in net.blocks] == [2, 2, 2]
    gradients.settle(gradients.take())
    assert [block.calls for block in net.blocks] == [2, 2, 2]


def test_saved_tensor_hooks_such_as_offload_do_not_lose_the_gradient():
    plain, net = run(Net()), Net()
    gradients = defer(net)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t.clone()):
        found = run(net, gradients, split=True)
    for name in plain:
        torch.testing.assert_close(found[name], plain[name], rtol=1e-5, atol=1e-5)


def test_under_autocast_products_are_bf16_and_sums_fp32():
    plain, net = Net(), Net()
    gradients = defer(net)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run(plain)
        with gradients.step():
            found = run(net, gradients, split=True)
        assert net.blocks[0].up(torch.zeros(1, DIM)).dtype == torch.bfloat16
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.02 * expected[name].norm(), name


def test_a_weight_is_cast_once_per_step_and_not_kept_after_it():
    gradients, weight = WeightGradients(), nn.Parameter(torch.ones(2))
    with gradients.step():
        once = gradients.cast(weight, torch.bfloat16)
        assert gradients.cast(weight, torch.bfloat16) is once
        assert not once.requires_grad
    with torch.no_grad():
        weight.fill_(3.0)
    assert gradients.cast(weight, torch.bfloat16)[0] == 3.0
    with gradients.step():
        assert gradients.cast(weight, torch.bfloat16)[0] == 3.0
    assert gradients.cast(weight, torch.float32) is weight


def test_bf16_weights_get_bf16_gradients():
    net = Net().to(torch.bfloat16)
    gradients = defer(net)
    found = run(net, gradients, split=True)
    assert {gradient.dtype for gradient in found.values()} == {torch.bfloat16}


def test_frozen_parameters_owe_and_keep_nothing():
    net = Net()
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name == "blocks.1.up.bias" or "norm" in name)
    gradients, saved = defer(net), []
    gradients.deferring = True
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(tuple(t.shape)) or t, lambda t: t):
        y = net(microbatches()[0])
    assert (2, 7, 3 * DIM) in saved  # tanh keeps its result
    assert saved.count((2, 7, 3 * DIM)) == 3  # and no linear keeps its input
    y.sum().backward()
    assert not gradients.take()  # a bias does not wait: for it alone an output gradient would be kept
    assert {name for name, p in net.named_parameters() if p.grad is not None and "norm" not in name} == {
        "blocks.1.up.bias"
    }


def test_between_i_and_w_only_what_w_needs_is_alive_and_after_it_nothing():
    net = Net()
    gradients = defer(net)
    gradients.deferring = True
    inputs, middles, results = [], [], []
    net.blocks[1].up.register_forward_hook(
        lambda _, args, out: (inputs.append((weakref.ref(args[0]), args[0].data_ptr())), None)[1]
    )
    net.blocks[1].up.register_forward_hook(lambda _, args, out: (middles.append(weakref.ref(out)), None)[1])
    y = net(microbatches()[0])
    results.append(weakref.ref(y))
    y.sum().backward()
    del y
    assert middles[0]() is None  # the input of tanh is no linear's input
    assert results[0]() is None
    owed = gradients.take()
    storages = {id(tensor): tensor for _, arguments in owed for tensor in arguments if tensor.dtype == torch.float32}
    graph, address = inputs[0]
    assert any(address == tensor.data_ptr() for tensor in storages.values())
    assert graph() is None  # its values wait, not the graph behind them, which ends in the input of the stage
    references = [weakref.ref(tensor) for tensor in storages.values() if not isinstance(tensor, nn.Parameter)]
    del storages
    gradients.settle(owed)
    assert len(references) > 6
    assert all(reference() is None for reference in references)
    for parameter in net.parameters():
        assert parameter.grad is not None
        assert parameter.grad.grad_fn is None  # a graph on .grad would keep every microbatch alive


def test_defer_keeps_names_parameters_and_hooks():
    net, calls = Net(), []
    before = dict(net.named_parameters())
    net.blocks[0].up.register_forward_hook(lambda *_: calls.append("hook"))
    defer(net)
    after = dict(net.named_parameters())
    assert before.keys() == after.keys()
    assert all(before[name] is after[name] for name in before)
    assert type(net.blocks[0].up) is DeferredLinear
    assert type(net.embed) is DeferredEmbedding
    net(microbatches()[0])
    assert calls == ["hook"]


def test_special_layers_are_left_to_autograd():
    class Scaled(nn.Linear):
        def forward(self, input):
            return super().forward(input) * 2

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    padded, counted = nn.Embedding(4, 2, padding_idx=0), nn.Embedding(4, 2, scale_grad_by_freq=True)
    layers = nn.ModuleList([Scaled(2, 2), padded, counted, normed])
    types = [type(layer) for layer in layers]
    defer(layers)
    assert [type(layer) for layer in layers] == types


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_weight_that_is_computed_in_the_forward_is_trained():
    """The older weight_norm leaves type and forward as they are and sets `weight` before each forward."""
    layer = nn.utils.weight_norm(nn.Linear(3, 2))
    gradients = defer(layer)
    gradients.deferring = True
    layer(torch.ones(1, 3)).sum().backward()
    assert not gradients.take()
    assert layer.weight_g.grad.abs().sum() > 0


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_parameter_sees_its_gradient(register):
    """A fused optimizer, for one; in torch's own I and W such hooks are never called."""
    net, seen = Net(), []
    gradients = defer(net)
    gradients.deferring = True
    for parameter in (net.embed.weight, net.blocks[0].up.weight, net.blocks[1].up.bias):
        getattr(parameter, register)(lambda it: seen.append(it if register == "register_hook" else it.grad))
    expected = run(Net())
    found = run(net, gradients, split=True)
    assert len(seen) == 3 * len(microbatches())
    assert all(gradient is not None for gradient in seen)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)


def test_what_a_step_that_failed_has_queued_is_not_added_to_the_next():
    net = Net()
    gradients = defer(net)
    gradients.deferring = True
    net(microbatches()[0]).sum().backward()
    assert gradients.owed
    with gradients.step():
        assert not gradients.owed
        assert not gradients.deferring


def test_layers_that_share_an_input_keep_one_copy_of_it_in_the_format_of_autocast():
    gradients, x = WeightGradients(), torch.randn(2, 3, requires_grad=True)
    first = gradients.cast_input(x, torch.bfloat16)
    assert gradients.cast_input(x, torch.bfloat16) is first
    assert not first.requires_grad
    with torch.no_grad():
        x.mul_(2)
    second = gradients.cast_input(x, torch.bfloat16)
    assert torch.equal(second, x.to(torch.bfloat16))
    assert gradients.cast_input(x.detach().clone(), torch.bfloat16) is not second
    assert gradients.cast_input(x, torch.float32) is x


def test_a_weight_used_twice_gets_both_gradients():
    layer = nn.Linear(DIM, DIM)
    twin = nn.Linear(DIM, DIM)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(2))
    layer(torch.relu(layer(x))).sum().backward()
    defer(twin)
    twin(torch.relu(twin(x))).sum().backward()
    torch.testing.assert_close(twin.weight.grad, layer.weight.grad)
    torch.testing.assert_close(twin.bias.grad, layer.bias.grad)


def test_a_second_derivative_is_refused_and_not_wrong():
    layer, x = nn.Linear(DIM, DIM), torch.randn(3, DIM, requires_grad=True)
    expected = torch.autograd.grad(layer(x).tanh().sum(), x)[0]
    defer(layer)
    (found,) = torch.autograd.grad(layer(x).tanh().sum(), x, create_graph=True)
    torch.testing.assert_close(found, expected)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        found.sum().backward()


def linear(bias=False):
    torch.manual_seed(0)
    layer = nn.Linear(DIM, DIM, bias=bias)
    return layer, defer(layer), torch.randn(2, 7, DIM, requires_grad=True)


@pytest.mark.parametrize("shape", [(DIM,), (7, DIM), (2, 7, DIM)])
@pytest.mark.parametrize("split", [False, True])
def test_with_and_without_others_packing_what_is_saved_a_layer_gives_autograds_bits(shape, split):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    found = {}
    for way in ("plain", "hook", "function"):
        torch.manual_seed(0)
        layer, input = nn.Linear(DIM, DIM, bias=False), x.clone().requires_grad_()
        layer.weight.grad = torch.zeros_like(layer.weight)
        gradients = defer(layer) if way != "plain" else WeightGradients()
        gradients.deferring = split
        packing = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)
        with packing if way == "function" else nullcontext():
            y = layer(input)
        assert (type(y.grad_fn).__name__ == "_LinearBackward") == (way == "function")
        y.tanh().sum().backward()
        gradients.settle(gradients.take())
        found[way] = y, input.grad, layer.weight.grad
    for way in ("hook", "function"):
        for one, other in zip(found[way][:2], found["plain"][:2], strict=True):
            assert torch.equal(one, other)
        torch.testing.assert_close(found[way][2], found["plain"][2])
    assert torch.equal(found["hook"][2], found["function"][2])


def test_an_input_changed_after_the_layer_has_read_it_is_refused():
    layer, _, x = linear()
    x = x * 1
    y = layer(x)
    x.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place after the layer had read it"):
        y.sum().backward()
    assert layer.weight.grad is None


def test_a_second_backward_needs_retain_graph_as_everywhere():
    layer, _, x = linear()
    y = layer(x).sum()
    y.backward(retain_graph=True)
    once = layer.weight.grad.clone()
    y.backward()
    assert torch.equal(layer.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="retain_graph=True"):
        y.backward()


def test_a_full_backward_lets_go_of_each_input_as_it_goes():
    net = Net()
    defer(net)
    inputs, alive = [], []
    for block in net.blocks:
        block.down.register_forward_pre_hook(lambda _, args: inputs.append(weakref.ref(args[0].untyped_storage())))
    x = net.embed(microbatches()[0])
    x.register_hook(lambda _: alive.extend(one() is not None for one in inputs))
    y = x
    for block in net.blocks:
        y = block(y)
    loss = (y**2).sum()
    assert all(one() is not None for one in inputs)
    loss.backward()  # `loss`, and so the graph, lives on
    assert alive == [False] * 3


def test_torch_func_is_refused_in_words():
    layer, _, x = linear()
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda x: layer(x).sum())(x)


def test_without_gradients_nothing_is_owed():
    layer, gradients, x = linear(bias=True)
    gradients.deferring = True
    with torch.no_grad():
        assert not layer(x).requires_grad
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert not gradients.owed
    assert layer.weight.grad is None
