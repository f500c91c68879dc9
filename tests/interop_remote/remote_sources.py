"""Small models of the package as the tracer writes them."""

from __future__ import annotations

import functools
from typing import Any

from codegen import Source
from forgather_dsl import GroupedQueryAttention, Llama, NormalInit, SlidingWindow
from forgather_dsl.interop.tracing import traced


@functools.cache
def llama(tied: bool = False, window: int | None = None, dropout: float = 0.0, **more: Any) -> Source:
    """Three layers of 48 features, a vocabulary of 61."""
    attention = GroupedQueryAttention() if window is None else SlidingWindow(window=window)
    model = Llama(
        dim=48,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=8,
        ffn_dim=64,
        vocab_size=61,
        attention=attention,
        tie_embeddings=tied,
        dropout=dropout,
        init=NormalInit(std=0.2),
        **more,
    )
    return traced(model).source
