"""A loss that takes the head a chunk of tokens at a time: the plain one's numbers, and no more memory than a chunk takes."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
import torch.nn as nn

from forgather_dsl import ChunkedCrossEntropy, UserError, build
from forgather_dsl.data.loader import IGNORED
from forgather_dsl.parallel.deferred import defer
from forgather_dsl.parallel.weight_gradients import WeightGradients
from forgather_dsl.plan.stage_cost import LOSS_ROWS
from forgather_dsl.train import chunked_loss, liger
from forgather_dsl.train.chunked_loss import check_head
from forgather_dsl.train.live import LiveBytes
from forgather_dsl.train.loss import CrossEntropy

DIM, WORDS, VALID = 24, 301, 100
BOUND = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
"""Of gradients, relative to the largest: a sum of products in another order; in bfloat16 rounded once for every chunk."""


def setting(dtype=torch.float32, batch=2, seq=150, bias=True):
    """A head, hidden states, targets of which a fifth and one whole chunk of 64 are ignored."""
    torch.manual_seed(0)
    head = nn.Linear(DIM, WORDS, bias=bias).to(dtype)
    gradients = defer(head)
    if not isinstance(getattr(head, "gradients", None), WeightGradients):
        raise AssertionError("the head is not deferred")
    hidden = torch.randn(batch, seq, DIM).to(dtype).requires_grad_()
    targets = torch.randint(WORDS, (batch, seq))
    targets[torch.rand(batch, seq) < 0.2] = IGNORED
    targets.flatten()[64:128] = IGNORED
    return head, gradients, hidden, targets


def run(loss, dtype, **options):
    """Loss, and the gradients of hidden states, weight and bias, of a second microbatch added to a first."""
    head, gradients, hidden, targets = setting(dtype, **options)
    with gradients.step():
        for _ in range(2):
            hidden.grad = None
            if loss is None:
                found = CrossEntropy()(head(hidden), targets)
            else:
                found = build(loss).from_hidden(hidden, head, targets)
            found.backward(torch.full_like(found, 1 / VALID))
    return [found.detach(), hidden.grad, head.weight.grad, *([] if head.bias is None else [head.bias.grad])]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_chunk_has_the_bits_of_the_plain_loss(dtype, bias):
    plain, chunked = run(None, dtype, bias=bias), run(ChunkedCrossEntropy(chunk=300), dtype, bias=bias)
    assert len(plain) == 3 + bias
    assert all(torch.equal(a, b) for a, b in zip(plain, chunked, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [64, 128, 299, 7])
def test_chunks_have_the_plain_loss_and_its_gradients_within_rounding(chunk, dtype):
    plain, chunked = run(None, dtype), run(ChunkedCrossEntropy(chunk=chunk), dtype)
    assert abs(float(chunked[0] / plain[0]) - 1) < (1e-6 if dtype == torch.float32 else 1e-4)
    for a, b in zip(plain[1:], chunked[1:], strict=True):
        assert float((a - b).abs().max() / a.abs().max()) < BOUND[dtype]
    assert torch.count_nonzero(chunked[1].flatten(0, 1)[64:128]) == 0


def test_evaluation_has_the_bits_of_training():
    head, _, hidden, targets = setting()
    with torch.no_grad():
        found = build(ChunkedCrossEntropy(chunk=64)).from_hidden(hidden, head, targets)
    assert torch.equal(found, run(ChunkedCrossEntropy(chunk=64), torch.float32)[0])


def test_the_loss_is_known_once_its_backward_has_run():
    head, _, hidden, targets = setting()
    loss = build(ChunkedCrossEntropy(chunk=64)).from_hidden(hidden, head, targets)
    assert torch.isnan(loss)
    seen = loss.detach()
    loss.backward()
    assert torch.isfinite(seen)


def test_the_head_is_done_in_i_and_nothing_of_it_waits_for_w():
    head, gradients, hidden, targets = setting()
    gradients.deferring = True
    build(ChunkedCrossEntropy(chunk=64)).from_hidden(hidden, head, targets).backward()
    assert not gradients.take()
    assert head.weight.grad is not None


@pytest.mark.parametrize("trained", ["hidden", "weight", "bias", ""])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(trained):
    expected = dict(zip(("loss", "hidden", "weight", "bias"), run(ChunkedCrossEntropy(chunk=64), torch.float32)))
    head, _, hidden, targets = setting()
    tensors = {"hidden": hidden, "weight": head.weight, "bias": head.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == trained)
    for _ in range(2):
        hidden.grad = None
        loss = build(ChunkedCrossEntropy(chunk=64)).from_hidden(hidden, head, targets)
        if trained:
            loss.backward(torch.full_like(loss, 1 / VALID))
    assert torch.equal(loss.detach(), expected["loss"])
    for name, tensor in tensors.items():
        assert torch.equal(tensor.grad, expected[name]) if name == trained else tensor.grad is None


def test_a_hook_on_the_weight_sees_its_gradient():
    head, _, hidden, targets = setting()
    head.weight.register_hook(lambda gradient: 2 * gradient)
    head.weight.grad = torch.ones_like(head.weight)
    build(ChunkedCrossEntropy(chunk=64)).from_hidden(hidden, head, targets).backward(torch.tensor(1 / VALID))
    other, _, hidden, targets = setting()
    build(ChunkedCrossEntropy(chunk=64)).from_hidden(hidden, other, targets).backward(torch.tensor(1 / VALID))
    assert torch.equal(head.weight.grad, 1 + 2 * other.weight.grad)
    assert torch.equal(head.bias.grad, other.bias.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_is_bounded_by_the_chunk(dtype):
    """Above what there was before and the gradient of the hidden states; of eight times the tokens no more."""
    chunk, loss_fn = 256, build(ChunkedCrossEntropy(chunk=256))
    for seq in (256, 2048):
        head, _, hidden, targets = setting(dtype, batch=1, seq=seq)
        head.weight.grad, head.bias.grad = torch.zeros_like(head.weight), torch.zeros_like(head.bias)
        there = (hidden, targets, head.weight, head.bias, head.weight.grad, head.bias.grad)
        logits, numbers = chunk * WORDS * dtype.itemsize, 16 * seq + 2**12  # numbers of tokens: their losses
        for grad in (True, False):
            live = LiveBytes()
            for tensor in there:
                live.hold(tensor, "there")
            before = live.total
            with live, torch.set_grad_enabled(grad):
                loss = loss_fn.from_hidden(hidden, head, targets)
                if grad:
                    loss.backward()
            beside = live.peak - before - (hidden.nbytes if grad else 0)
            copies = 12 if grad else 4 + 4 * (dtype != torch.float32)  # bytes
            rows = copies * LOSS_ROWS * WORDS
            assert 0.9 * (logits + rows) < beside < logits + rows + numbers


class Capped(nn.Linear):
    """A head that does more than its weight says."""


def test_a_head_that_is_not_plain_is_refused():
    with pytest.raises(
        UserError, match=r"takes a plain nn.Linear, and the head is Capped\(.*write loss=CrossEntropy\(\)"
    ):
        check_head(Capped(3, 4), "ChunkedCrossEntropy")
    check_head(nn.Linear(3, 4), "ChunkedCrossEntropy")


def test_liger_is_refused_without_a_gpu():
    with pytest.raises(UserError, match=r"'liger' runs on a GPU and this rank is on cpu; write kernel='torch'"):
        build(ChunkedCrossEntropy(kernel="liger")).require(torch.device("cpu"))
    build(ChunkedCrossEntropy()).require(torch.device("cpu"))


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_a_missing_liger_names_the_command():
    with pytest.raises(UserError, match=r"pip install 'forgather_dsl\[kernels\]'"):
        build(ChunkedCrossEntropy(kernel="liger")).require(torch.device("cuda"))


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="Triton runs on a CPU with TRITON_INTERPRET=1 only"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ligers_kernel_has_the_losses_and_gradients_of_torchs_operators(dtype):
    pytest.importorskip("liger_kernel")
    logits = torch.randn(12, 301).mul_(4).to(dtype)
    targets = torch.randint(301, (12,))
    targets[3] = IGNORED
    mine, theirs = logits.clone(), logits.clone()
    scale = torch.tensor(0.01)
    assert torch.allclose(liger.loss_of(logits, targets, None), chunked_loss.loss_of(logits, targets, None), rtol=1e-5)
    losses = liger.loss_of(mine, targets, scale), chunked_loss.loss_of(theirs, targets, scale)
    assert torch.allclose(*losses, rtol=1e-5)
    assert torch.allclose(
        mine, theirs, rtol=1e-5 if dtype == torch.float32 else 2**-6, atol=1e-9
    )  # it rounds down there
