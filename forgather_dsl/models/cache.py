"""Keys and values of the tokens so far, for generation: each layer adds its new ones and gets all of them back.

Room is taken in blocks of 256 tokens: what growing copies is then below one percent of what attention reads, and at
most one block is unused. Layers are found by their global index, so a cache serves any set of layers; stages that
share a process need one each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BLOCK = 256  # tokens


@contextmanager
def decoding() -> Iterator[None]:
    """While keys grow by one a token: cuDNN, which torch prefers for attention on some GPUs, is left out.

    It makes a plan for every number of keys; on an H200 a token of a 7 B model took 73 ms with it and 26 ms without.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


class KVCache:
    """Keys and values per layer, each `[batch, num_kv_heads, tokens, head_dim]`; empty when made."""

    def __init__(self) -> None:
        self._keys: dict[int, torch.Tensor] = {}  # with room to grow: [batch, num_kv_heads, capacity, head_dim]
        self._values: dict[int, torch.Tensor] = {}
        self._lengths: dict[int, int] = {}  # tokens stored, per layer

    @property
    def length(self) -> int:
        """Tokens that every layer has seen: read it before a forward, as the offset of its first token."""
        return min(self._lengths.values(), default=0)

    def update(self, layer_index: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append `k` and `v [batch, num_kv_heads, new, head_dim]`; return all of this layer's, as views.

        Raises `ValueError` when gradients would flow through the cache, or the batch or the heads have changed.
        """
        if k.requires_grad or v.requires_grad:
            raise ValueError(
                "a KVCache is for generation and passes no gradients: call the model inside torch.inference_mode(), "
                "or train with cache=None"
            )
        start = self._lengths.get(layer_index, 0)
        end = start + k.shape[2]
        self._reserve(layer_index, k, v, end)
        keys, values = self._keys[layer_index], self._values[layer_index]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        self._lengths[layer_index] = end
        return keys[:, :, :end], values[:, :, :end]

    def _reserve(self, layer_index: int, k: torch.Tensor, v: torch.Tensor, tokens: int) -> None:
        old = self._keys.get(layer_index)
        if old is not None and (old.shape[0], old.shape[1]) != (k.shape[0], k.shape[1]):
            raise ValueError(
                f"layer {layer_index}: the cache holds {old.shape[0]} sequences with {old.shape[1]} key heads, the new "
                f"keys have {k.shape[0]} and {k.shape[1]}: make a new KVCache() for another batch"
            )
        if old is not None and tokens <= old.shape[2]:
            return
        capacity = -(-tokens // _BLOCK) * _BLOCK
        stored = self._lengths.get(layer_index, 0)
        for store, new in ((self._keys, k), (self._values, v)):
            grown = new.new_empty(new.shape[0], new.shape[1], capacity, new.shape[3])
            if stored:
                grown[:, :, :stored] = store[layer_index][:, :, :stored]
            store[layer_index] = grown
