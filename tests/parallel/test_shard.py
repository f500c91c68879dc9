"""A head in shards against the whole head: loss and both gradients, by torch's own cross entropy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from standin import meta_model

from forgather_dsl.parallel.shard import HeadShard, Targets, combine, rows_of, valid_tokens

HOST = torch.device("cpu")
TOKENS, DIM, VOCAB = (2, 9), 16, 23


def case(scale: float = 1.0):
    """Hidden states, the whole head's weight, targets of which some are ignored."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(*TOKENS, DIM, generator=generator)
    weight = torch.randn(VOCAB, DIM, generator=generator) * scale
    targets = torch.randint(VOCAB, TOKENS, generator=generator)
    targets[0, :4] = -100
    return hidden, weight, targets


def whole(hidden, weight, targets, loss_gradient, dtype=torch.float32):
    """Loss, gradient of hidden states and of the weight; the products in `dtype`, as autocast takes them."""
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logits = F.linear(hidden.to(dtype), weight.to(dtype)).float()
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum")
    return loss.detach(), *torch.autograd.grad(loss * loss_gradient, (hidden, weight))


def in_shards(hidden, weight, targets, loss_gradient, count, autocast=None):
    """The same, from `count` shards, their weight gradients put together."""
    shards, found = [], []
    for number in range(count):
        shard = HeadShard(meta_model(), 4 + number, number, count, HOST, autocast)
        shard.weight.detach().copy_(weight[shard.rows.start : shard.rows.stop])
        found.append(Targets.of(targets, shard.rows, HOST))
        shards.append(shard)
    sent = hidden.to(autocast or hidden.dtype)
    valid = valid_tokens(targets, HOST)
    parts = [shard.forward(sent, mine, 0, training=True) for shard, mine in zip(shards, found)]
    loss, normaliser, gradient = combine(parts, found, valid, loss_gradient)
    for shard in shards:
        shard.weights(normaliser, valid, loss_gradient, 0)
        assert shard.left() == []
    evaluated = [shard.forward(sent, mine, 0, training=False) for shard, mine in zip(shards, found)]
    assert combine(evaluated, found, valid, 0.0).loss == loss
    assert shards[0].left() == []
    return loss, gradient.view_as(hidden), torch.cat([shard.weight.grad for shard in shards])


def off(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("count", [1, 2, 4, 23])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # at 30, one shard has all of the probability, and others none
def test_shards_together_are_the_whole_head(count, scale):
    arguments = (*case(scale), 1 / 14)
    for found, expected in zip(in_shards(*arguments, count), whole(*arguments)):
        assert off(found, expected) < 2e-6


def test_a_shard_without_any_target_takes_part():
    hidden, weight, targets = case()
    targets[targets >= 6] = 3
    for found, expected in zip(in_shards(hidden, weight, targets, 1.0, 4), whole(hidden, weight, targets, 1.0)):
        assert off(found, expected) < 2e-6


def test_in_bfloat16_shards_round_no_more_than_the_whole_head_does():
    """Both against fp32. A target's row is weighed in fp32, so that a sure prediction does not cancel in bfloat16."""
    arguments = (*case(), 1 / 14)
    exact = whole(*arguments)
    theirs, mine = whole(*arguments, torch.bfloat16), in_shards(*arguments, 4, torch.bfloat16)
    for a, b, c in zip(mine, theirs, exact):
        assert off(a, c) < 1.5 * off(b, c) + 1e-4


def test_rows_go_to_shards_as_evenly_as_they_can():
    for vocab in (4, 5, 23, 128_256):
        rows = [rows_of(vocab, shard, 4) for shard in range(4)]
        assert [row for part in rows for row in part] == list(range(vocab))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="write tie_embeddings=False"):
        HeadShard(meta_model(tied=True), 4, 0, 2, HOST)
    with pytest.raises(ValueError, match="23 rows of the head do not go round 24 ranks"):
        HeadShard(meta_model(), 4, 0, 24, HOST)
    model = meta_model()
    model.head = torch.nn.Linear(16, 23, device="meta")
    with pytest.raises(ValueError, match="can be spread: leave out spread_head"):
        HeadShard(model, 4, 0, 2, HOST)
