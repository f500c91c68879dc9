"""Decoding with a KV cache gives the numbers of one forward over the whole text, however the text is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forgather_dsl.models.cache import KVCache
from forgather_dsl.models.rope import NoRope

SEQ = 33
ONE_BY_ONE = [1] * SEQ
PREFILL_THEN_ONE_BY_ONE = [20] + [1] * 13
CHUNKS = [9, 5, 1, 16, 2]


def variants(parts: Any) -> dict[str, dict[str, Any]]:
    return {
        "grouped heads": {},
        "sliding window": {"attention": parts.attention(window=6)},
        "window of one token": {"attention": parts.attention(window=1)},
        "window longer than the text": {"attention": parts.attention(window=50)},
        "qk norm": {"attention": parts.attention(qk_norm=parts.qk_norm), "rope": parts.llama3_rope},
        "no rope": {"rope": parts.factory(NoRope)},
    }


@pytest.mark.parametrize("cut", [ONE_BY_ONE, PREFILL_THEN_ONE_BY_ONE, CHUNKS], ids=["tokens", "prefill", "chunks"])
@pytest.mark.parametrize(
    "variant",
    ["grouped heads", "sliding window", "window of one token", "window longer than the text", "qk norm", "no rope"],
)
def test_decoding_equals_one_forward(variant: str, cut: list[int], build: Any, parts: Any) -> None:
    model = build(**variants(parts)[variant])
    parts.randomise(model)
    tokens = torch.randint(0, 61, (2, SEQ), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        whole = model(tokens)
        cache = KVCache()
        pieces = []
        for piece in tokens.split(cut, dim=1):
            assert cache.length == sum(p.shape[1] for p in pieces)
            pieces.append(model(piece, cache=cache))
    assert cache.length == SEQ
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-5)


def test_a_cache_grows_over_block_borders_and_keeps_what_it_holds() -> None:
    cache = KVCache()
    k, v = torch.randn(2, 3, 600, 4), torch.randn(2, 3, 600, 4)
    for start, end in ((0, 255), (255, 256), (256, 257), (257, 600)):
        keys, values = cache.update(0, k[:, :, start:end], v[:, :, start:end])
        assert torch.equal(keys, k[:, :, :end])
        assert torch.equal(values, v[:, :, :end])


def test_the_length_counts_a_token_when_all_layers_have_seen_it() -> None:
    cache = KVCache()
    assert cache.length == 0
    for layer in (4, 5):
        cache.update(layer, torch.zeros(1, 1, 3, 2), torch.zeros(1, 1, 3, 2))
    cache.update(4, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert cache.length == 3
    cache.update(5, torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
    assert cache.length == 5


class NormInFP32(torch.nn.Module):
    """What autocast makes of a layer norm on a GPU."""

    def __init__(self, dim: int) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(x.float(), dim=-1)


def test_under_autocast_keys_are_kept_in_16_bits_although_their_norm_computes_in_fp32(build: Any, parts: Any) -> None:
    cache = KVCache()
    model = build(attention=parts.attention(qk_norm=NormInFP32))
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
        keys, values = cache.update(0, torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8))
    assert keys.dtype == values.dtype == torch.bfloat16


def test_a_cache_serves_a_stage_that_owns_only_later_layers(build: Any, parts: Any) -> None:
    model = build()
    parts.randomise(model)
    x = torch.randn(1, 5, 48)
    first, second = KVCache(), KVCache()

    def decode(layers: Any, x: torch.Tensor, cache: KVCache) -> torch.Tensor:
        context = model.context(x.shape[1], cache.length, None, "cpu")
        for layer in layers:
            x = layer(x, context, cache)
        return x

    with torch.inference_mode():
        whole = decode(model.layers, x, KVCache())
        steps = [decode(model.layers[1:], decode(model.layers[:1], x[:, [t]], first), second) for t in range(5)]
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=0, atol=1e-5)


def test_a_cache_refuses_gradients(build: Any) -> None:
    with pytest.raises(ValueError, match=r"inference_mode\(\)"):
        build()(torch.zeros(1, 4, dtype=torch.long), cache=KVCache())


def test_a_cache_refuses_another_batch(build: Any) -> None:
    cache = KVCache()
    with torch.inference_mode():
        build()(torch.zeros(2, 4, dtype=torch.long), cache=cache)
        with pytest.raises(ValueError, match=r"holds 2 sequences .* new keys have 1 "):
            build()(torch.zeros(1, 1, dtype=torch.long), cache=cache)


def test_a_context_refuses_a_cache_with_other_positions(build: Any) -> None:
    model, cache = build(), KVCache()
    with torch.inference_mode():
        model(torch.zeros(1, 4, dtype=torch.long), cache=cache)
        context = model.context(1, 0, None, "cpu")
        with pytest.raises(ValueError, match="cache holds 4 tokens, but this forward starts at position 0"):
            model.layers[0](torch.zeros(1, 1, 48), context, cache)
