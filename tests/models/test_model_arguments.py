"""A constructor argument that cannot work is refused at once, with the numbers and what to write instead."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from forgather_dsl.models import attention, init, llama, mlp, norms, rope
from forgather_dsl.models.init import NormalInit
from forgather_dsl.models.mlp import GELUMLP, ReLUSquaredMLP, SwiGLU
from forgather_dsl.models.norms import LayerNorm, RMSNorm
from forgather_dsl.models.rope import Llama3Rope, Rope

LLAMA3 = {
    "head_dim": 8,
    "theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position": 64,
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 4}, r"num_heads=6 .* num_kv_heads=4 .* one of \[1, 2, 3, 6\]"),
        ({"num_kv_heads": 0}, r"num_kv_heads=0 .* one of \[1, 2, 3, 6\]"),
        ({"num_kv_heads": 12}, r"num_kv_heads=12 .* one of \[1, 2, 3, 6\]"),
        ({"head_dim": 7}, r"head_dim=7 does not split into pairs: write an even head_dim, such as 8, or NoRope"),
        ({"head_dim": 0}, r"head_dim=0, .* makes no model: write numbers from 1 up"),
        ({"dim": 0}, r"dim=0, .* makes no model"),
        ({"num_layers": 0}, r"num_layers=0, .* makes no model"),
        ({"num_heads": 0}, r"num_heads=0, .* makes no model"),
        ({"vocab_size": 0}, r"vocab_size=0 makes no model"),
        ({"ffn_dim": 0}, r"ffn_dim=0 .* write ffn_dim >= 1"),
        ({"dropout": 1.0}, r"dropout=1.0 is a probability: write 0 <= dropout < 1"),
        ({"dropout": -0.1}, r"dropout=-0.1 is a probability"),
    ],
)
def test_a_model_that_cannot_be_is_refused(changes: dict[str, Any], message: str, build: Any) -> None:
    with pytest.raises(ValueError, match=message):
        build(**changes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rope(head_dim=0, theta=1e4), r"head_dim=0 .* such as 2"),
        (lambda: Rope(head_dim=8, theta=1.0), r"theta=1.0 .* above 1"),
        (lambda: Llama3Rope(**{**LLAMA3, "factor": 0.5}), r"factor=0.5 would shrink"),
        (lambda: Llama3Rope(**{**LLAMA3, "low_freq_factor": 4.0}), r"low_freq_factor=4.0 and high_freq_factor=4.0"),
        (lambda: Llama3Rope(**{**LLAMA3, "original_max_position": 0}), r"original_max_position=0"),
        (lambda: RMSNorm(dim=0, eps=1e-5), r"dim=0 features is empty"),
        (lambda: LayerNorm(dim=4, eps=0.0, bias=True), r"eps=0.0 .* such as eps=1e-5"),
        (lambda: GELUMLP(dim=4, ffn_dim=0, bias=False), r"ffn_dim=0"),
        (lambda: ReLUSquaredMLP(dim=4, ffn_dim=-1, bias=False), r"ffn_dim=-1"),
        (lambda: NormalInit(std=0.0, depth_scaled=False), r"std=0.0 .* such as std=0.02"),
    ],
)
def test_a_part_that_cannot_be_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"), [({"window": 0}, r"window=0 .* write window >= 1"), ({"dropout": 2.0}, r"dropout=2.0")]
)
def test_an_attention_that_cannot_be_is_refused(changes: dict[str, Any], message: str, parts: Any) -> None:
    with pytest.raises(ValueError, match=message):
        parts.attention(**changes)(dim=48, num_heads=6, num_kv_heads=2, head_dim=8, layer_index=0)


@pytest.mark.parametrize("module", [attention, init, llama, mlp, norms, rope])
def test_no_constructor_has_defaults(module: Any) -> None:
    classes = [c for c in vars(module).values() if inspect.isclass(c) and c.__module__ == module.__name__]
    assert classes
    for cls in classes:
        for parameter in inspect.signature(cls).parameters.values():
            assert parameter.default is inspect.Parameter.empty, f"{cls.__name__}({parameter})"


def test_mlps_compute_their_formulas() -> None:
    x = torch.linspace(-2, 2, 8).view(2, 4)
    for cls in (GELUMLP, ReLUSquaredMLP, SwiGLU):
        layer = cls(dim=4, ffn_dim=6, bias=True)
        up = x @ layer.up_proj.weight.T + layer.up_proj.bias
        if isinstance(layer, SwiGLU):
            gate = x @ layer.gate_proj.weight.T + layer.gate_proj.bias
            hidden = gate / (1 + torch.exp(-gate)) * up
        elif isinstance(layer, GELUMLP):
            hidden = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        else:
            hidden = torch.where(up > 0, up * up, torch.zeros(()))
        expected = hidden @ layer.down_proj.weight.T + layer.down_proj.bias
        torch.testing.assert_close(layer(x), expected)


def test_norms_compute_their_formulas() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)) + 1
    rms, layer = RMSNorm(dim=5, eps=0.1), LayerNorm(dim=5, eps=0.1, bias=True)
    assert layer.bias is not None
    for parameter in (rms.weight, layer.weight, layer.bias):
        torch.nn.init.uniform_(parameter)
    expected = x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt() * rms.weight
    torch.testing.assert_close(rms(x), expected)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 0.1).sqrt() * layer.weight + layer.bias
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.filterwarnings("error")  # torch warns where mixed dtypes lose the fused norm
def test_16_bit_models_and_autocast_stay_close_to_fp32(build: Any, parts: Any) -> None:
    model = build(attention=parts.attention(window=5, qk_norm=parts.qk_norm))
    parts.randomise(model)
    tokens = torch.randint(0, 61, (2, 12), generator=torch.Generator().manual_seed(5))
    documents = torch.tensor([[0] * 5 + [1] * 7] * 2)
    with torch.inference_mode():
        exact = model(tokens, documents)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(tokens, documents)
        half = model.to(torch.bfloat16)(tokens, documents)
    assert half.dtype == torch.bfloat16
    for rounded in (mixed, half):
        assert 0 < (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_far_positions_are_rotated_in_fp32(build: Any) -> None:
    context = build().context(2, 100_000, None, "cpu")
    assert context.rope is not None
    x = torch.randn(1, 2, 6, 8, generator=torch.Generator().manual_seed(0))
    exact, half = rope.rotate(x.bfloat16().float(), context.rope), rope.rotate(x.bfloat16(), context.rope)
    assert torch.equal(half, exact.to(torch.bfloat16))
