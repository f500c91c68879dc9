"""Every supported family gives the logits of transformers' own implementation, with the same weights under the same names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

from forgather_dsl.models.mlp import SwiGLU
from forgather_dsl.models.rope import Rope

SEQ = 40  # longer than the sliding window below
WINDOW = 7
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 160,
}


def reference(family: str, **options: Any) -> Any:
    """transformers' model of the sizes of `build()`, attention written out (no SDPA), fp32."""
    sizes = {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "vocab_size": 61,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 1280,
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    config = getattr(transformers, f"{family}Config")(**{**sizes, **options})
    return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def rope_options(theta: float, scaling: dict[str, Any] | None = None) -> dict[str, Any]:
    """RoPE options as this version of transformers spells them."""
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": {"rope_type": "default", "rope_theta": theta, **(scaling or {})}}
    return {"rope_theta": theta, "rope_scaling": scaling}


def largest_difference(ours: Any, theirs: Any, parts: Any) -> float:
    parts.randomise(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens = torch.randint(0, 61, (2, SEQ), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = ours(tokens)
        assert logits.std() > 0.3, "logits too small to tell anything"
        return (logits - theirs(tokens).logits).abs().max().item()


def cases(parts: Any) -> dict[str, tuple[dict[str, Any], str, dict[str, Any]]]:
    plain, window = rope_options(10000.0), {"sliding_window": WINDOW}
    qwen2 = parts.attention(bias=True)
    qwen3 = parts.attention(qk_norm=parts.qk_norm)
    return {
        "llama2": ({}, "Llama", plain),
        "llama2-heads-not-shared": ({"num_kv_heads": 6}, "Llama", {**plain, "num_key_value_heads": 6}),
        "llama-biases": (
            {"attention": parts.attention(bias=True, output_bias=True), "mlp": parts.factory(SwiGLU, bias=True)},
            "Llama",
            {**plain, "attention_bias": True, "mlp_bias": True},
        ),
        "llama3-rope": ({"rope": parts.llama3_rope}, "Llama", rope_options(10000.0, LLAMA3)),
        "llama3.2-tied": (
            {"rope": parts.llama3_rope, "tie_embeddings": True},
            "Llama",
            {**rope_options(10000.0, LLAMA3), "tie_word_embeddings": True},
        ),
        "mistral": ({"attention": parts.attention(window=WINDOW)}, "Mistral", {**plain, **window}),
        "qwen2": ({"attention": qwen2}, "Qwen2", plain),
        "qwen2-tied": (
            {"attention": qwen2, "tie_embeddings": True},
            "Qwen2",
            {**plain, "tie_word_embeddings": True},
        ),
        "qwen3": ({"attention": qwen3, "head_dim": 10}, "Qwen3", {**plain, "head_dim": 10}),
    }


NAMES = (
    "llama2", "llama2-heads-not-shared", "llama-biases", "llama3-rope", "llama3.2-tied",
    "mistral", "qwen2", "qwen2-tied", "qwen3",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers(name: str, build: Any, parts: Any) -> None:
    changes, family, options = cases(parts)[name]
    difference = largest_difference(build(**changes), reference(family, **options), parts)
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-5


def test_stretched_rope_equals_transformers_far_beyond_the_original_context(parts: Any) -> None:
    rotary = reference("Llama", **rope_options(10000.0, LLAMA3)).model.rotary_emb
    positions = torch.tensor([0, 1, 100, 161, 1279])
    cos, sin = rotary(torch.zeros(1), positions[None])
    our_cos, our_sin = parts.llama3_rope(head_dim=8).tables(positions, "cpu")
    sign = torch.tensor([-1.0] * 4 + [1.0] * 4)  # ours carries the sign of the rotation
    torch.testing.assert_close(our_cos, cos[0], rtol=0, atol=0)
    torch.testing.assert_close(our_sin * sign, sin[0], rtol=0, atol=0)
    plain = parts.factory(Rope, theta=10000.0)(head_dim=8).tables(positions, "cpu")
    assert not torch.equal(plain[0], our_cos)
