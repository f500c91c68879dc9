"""What attention may see: the past, the window, its own document; and the masks that say so are made once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forgather_dsl.models.cache import KVCache
from forgather_dsl.models.llama import Block
from forgather_dsl.models.parts import largest_dropout

DOCUMENTS = [[5, 5, 5, 5, 2, 2, 2, 2, 2, 2, 2, 9], [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("window", [None, 3])
def test_a_packed_row_equals_its_documents_run_alone(window: int | None, build: Any, parts: Any) -> None:
    model = build(attention=parts.attention() if window is None else parts.attention(window=window))
    parts.randomise(model)
    documents = torch.tensor(DOCUMENTS)
    tokens = torch.randint(0, 61, documents.shape, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        packed = model(tokens, documents)
        for row in range(2):
            for document in documents[row].unique():
                here = documents[row] == document
                alone = model(tokens[row, here][None])
                torch.testing.assert_close(packed[row, here][None], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
def test_documents_with_a_cache_name_its_tokens_too(window: int | None, build: Any, parts: Any) -> None:
    model = build(attention=parts.attention() if window is None else parts.attention(window=window))
    parts.randomise(model)
    documents = torch.tensor(DOCUMENTS)
    tokens = torch.randint(0, 61, documents.shape, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        cache, whole = KVCache(), model(tokens, documents)
        assert torch.equal(model(tokens[:, :6], documents[:, :6], cache), model(tokens[:, :6], documents[:, :6]))
        for start, end in ((6, 7), (7, 10), (10, 12)):
            piece = model(tokens[:, start:end], documents[:, :end], cache)
            torch.testing.assert_close(piece, whole[:, start:end], rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match="documents name 1 tokens, but 12 are in the cache and 1 are new"):
            model(tokens[:, :1], documents[:, :1], cache)


@pytest.mark.parametrize("changes", [{}, {"window": 3}])
def test_no_token_sees_the_future_or_beyond_its_window(changes: dict[str, int], build: Any, parts: Any) -> None:
    attention = parts.attention(**changes)(dim=48, num_heads=6, num_kv_heads=2, head_dim=8, layer_index=0)
    context = build().context(9, 0, None, "cpu")
    x = torch.randn(1, 9, 48, requires_grad=True)
    for query in range(9):
        (gradient,) = torch.autograd.grad(attention(x, context, None)[0, query].sum(), x)
        seen = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
        assert seen == list(range(max(0, query - changes.get("window", 9) + 1), query + 1))


def test_plain_causal_attention_and_single_tokens_need_no_mask(build: Any) -> None:
    model = build()
    assert model.context(8, 0, None, "cpu").mask(8, torch.float32) == (None, True)
    assert model.context(8, 0, None, "cpu").window_mask(8, 8, torch.float32) == (None, True)
    assert model.context(1, 7, None, "cpu").mask(8, torch.float32) == (None, False)


def test_layers_share_one_mask_per_window(build: Any) -> None:
    context = build().context(8, 0, torch.zeros(1, 8), "cpu")
    mask, is_causal = context.mask(8, torch.float32)
    assert not is_causal
    assert context.mask(8, torch.float32)[0] is mask
    narrow, _ = context.window_mask(8, 2, torch.float32)
    assert context.window_mask(8, 2, torch.float32)[0] is narrow
    assert narrow is not None
    assert (narrow == 0).sum() == 15  # 2 keys for each of 8 queries, 1 for the first


def test_what_is_kept_for_backward_holds_the_mask_once(build: Any, parts: Any) -> None:
    model = build()
    documents = torch.tensor(DOCUMENTS)
    masks = set()

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape[-2:] == (12, 12):
            masks.add(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(2, 12, dtype=torch.long), documents)
    assert len(masks) == 1


def test_without_dropout_training_draws_no_random_numbers(build: Any) -> None:
    model = build().train()
    tokens = torch.arange(10)[None]
    before = torch.get_rng_state()
    assert torch.equal(model(tokens), model(tokens))
    assert torch.equal(torch.get_rng_state(), before)
    assert largest_dropout(model) == 0.0


def test_dropout_repeats_with_the_generator_and_stops_in_eval(build: Any) -> None:
    model = build(dropout=0.5).train()
    tokens = torch.arange(10)[None]
    torch.manual_seed(7)
    first, second = model(tokens), model(tokens)
    torch.manual_seed(7)
    assert torch.equal(model(tokens), first)
    assert not torch.equal(first, second)
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    assert torch.equal(model(tokens), build().eval()(tokens))


def test_residual_dropout_drops_both_branches_and_keeps_their_mean() -> None:
    class Ones(torch.nn.Module):
        def forward(self, x: torch.Tensor, *context: Any) -> torch.Tensor:
            return torch.ones_like(x)

    block = Block(Ones(), Ones(), torch.nn.Identity(), torch.nn.Identity(), dropout=0.25).train()
    torch.manual_seed(0)
    added = block(torch.zeros(1, 100, 400), None, None)  # type: ignore[arg-type]
    assert added.unique().tolist() == pytest.approx([0.0, 4 / 3, 8 / 3])
    assert added.mean().item() == pytest.approx(2.0, abs=0.03)


def test_dropout_tells_the_largest_of_all_layers(build: Any, parts: Any) -> None:
    assert largest_dropout(build(dropout=0.1, attention=parts.attention(dropout=0.2))) == 0.2
    model = build(attention=parts.attention(dropout=0.2)).train()
    tokens = torch.arange(10)[None]
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))
    own = build(mlp=lambda dim, ffn_dim, layer_index: torch.nn.Sequential(torch.nn.Dropout(0.3)))
    assert largest_dropout(own) == 0.3
