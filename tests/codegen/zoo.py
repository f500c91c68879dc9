"""Small models of every kind that the package has: norms, attentions, MLPs, position codes, tied or not, with dropout or not."""

from __future__ import annotations

import itertools
import random
from typing import Any

from forgather_dsl.dsl import Cycle
from forgather_dsl.specs import (
    GELUMLP,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    Llama3Rope,
    NormalInit,
    NoRope,
    ReLUSquaredMLP,
    RMSNorm,
    Rope,
    SlidingWindow,
    SwiGLU,
)

NORMS = (RMSNorm(eps=1e-6), LayerNorm(), LayerNorm(bias=True), Cycle(RMSNorm(), LayerNorm(bias=True)))
ROPES = (Rope(), Llama3Rope(theta=1e4, original_max_position=32), NoRope())
QK_NORMS = (None, RMSNorm(), LayerNorm(eps=1e-6, bias=True))
MLPS = ("swiglu", "gelu", "relu squared")
ATTENTIONS = ("global", "local", "both")


def _mlp(kind: str, draw: random.Random) -> Any:
    bias = draw.random() < 0.5
    if draw.random() < 0.15:
        return Cycle(SwiGLU(bias=bias), GELUMLP(), GELUMLP())
    return {"swiglu": SwiGLU, "gelu": GELUMLP, "relu squared": ReLUSquaredMLP}[kind](bias=bias)


def _attention(kind: str, draw: random.Random) -> Any:
    options = {
        "bias": draw.random() < 0.5,
        "output_bias": draw.random() < 0.3,
        "qk_norm": draw.choice(QK_NORMS),
        "dropout": draw.choice((0.0, 0.0, 0.1)),
    }
    window = draw.choice((3, 7, 500))
    if kind == "global":
        return GroupedQueryAttention(**options)
    if kind == "local":
        return SlidingWindow(window=window, **options)
    other = {**options, "qk_norm": draw.choice((options["qk_norm"], None))}
    return Cycle(SlidingWindow(window=window, **options), GroupedQueryAttention(**other))


def model(draw: random.Random, norm: Any, attention: str, mlp: str, rope: Any, tied: bool) -> Llama:
    """A model of these kinds; all other options are drawn."""
    heads = draw.choice((2, 4, 6))
    head_dim = draw.choice((4, 8, 10))
    return Llama(
        vocab_size=61,
        dim=draw.choice((heads * head_dim, 24)),
        num_layers=draw.choice((1, 2, 3)),
        num_heads=heads,
        num_kv_heads=draw.choice([n for n in (1, 2, heads) if heads % n == 0]),
        head_dim=head_dim,
        ffn_dim=draw.choice((16, 40)),
        norm=norm,
        attention=_attention(attention, draw),
        mlp=_mlp(mlp, draw),
        rope=rope,
        tie_embeddings=tied,
        dropout=draw.choice((0.0, 0.0, 0.2)),
        init=NormalInit(std=draw.choice((0.02, 0.1)), depth_scaled=draw.random() < 0.5),
    )


def every_kind(seed: int) -> list[Llama]:
    """Every combination of norm, attention, MLP, position code and tie: 216 models."""
    draw = random.Random(seed)
    kinds = itertools.product(NORMS, ATTENTIONS, MLPS, ROPES, (False, True))
    return [model(draw, *kind) for kind in kinds]


def some(seed: int, count: int) -> list[Llama]:
    """Models whose kinds are drawn too."""
    draw = random.Random(seed)
    kinds = (NORMS, ATTENTIONS, MLPS, ROPES, (False, True))
    return [model(draw, *(draw.choice(options) for options in kinds)) for _ in range(count)]
