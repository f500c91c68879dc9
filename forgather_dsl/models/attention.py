"""Causal self-attention through torch's SDPA, and the Context that all layers of one forward share.

A Context hands out masks on demand, one per (keys, window), as numbers to add in the dtype of the scores: SDPA would
turn a boolean mask into such a copy in every layer and keep each of them for backward. Plain causal attention and
decoding token by token need no mask at all.
Constructors raise `ValueError` for numbers that cannot be.
Dimensions: B batch, S new tokens, K keys (cached and new), H query heads, G key/value heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from forgather_dsl.models.cache import KVCache
from forgather_dsl.models.rope import Tables, rotate

Visible = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]  # keys, values, and SDPA's mask and is_causal


class Context:
    """What the layers share in one forward of the positions `offset .. offset + length`.

    `rope` holds the tables of these positions, or None; `documents [batch, offset + length]` ids that attention never
    crosses, of the tokens in the cache and the new ones, or None.
    """

    def __init__(
        self,
        rope: Tables | None,
        length: int,
        offset: int,
        documents: torch.Tensor | None,
        device: torch.device | str,
    ) -> None:
        self.rope = rope
        self.length = length
        self.offset = offset
        self.documents = documents
        self.device = device
        self._masks: dict[object, torch.Tensor] = {}  # by what they depend on

    def mask(self, num_keys: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, bool]:
        """SDPA's `(attn_mask, is_causal)` for the last `num_keys` positions as keys.

        The mask is None where none is needed, else 0 and -inf of `dtype`, `[S, K]`, or `[B, 1, S, K]` with documents.
        Raises `ValueError` when the keys are not those of the positions up to `offset + length`.
        """
        if self.documents is None and num_keys == self.length:
            return None, True
        if self.documents is None and self.length == 1 and num_keys <= self.offset + 1:
            return None, False
        key = (num_keys, dtype)
        if key not in self._masks:
            self._masks[key] = self._as_numbers(self._past(num_keys), dtype)
        return self._masks[key], False

    def window_mask(self, num_keys: int, window: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, bool]:
        """The same where each position sees the last `window` of the keys, itself included."""
        if window >= num_keys:
            return self.mask(num_keys, dtype)
        key = (num_keys, window, dtype)
        if key not in self._masks:
            keys = torch.arange(num_keys, device=self.device)
            near = keys > keys[num_keys - self.length :, None] - window
            self._masks[key] = self._as_numbers(self._past(num_keys) & near, dtype)
        return self._masks[key], False

    def _past(self, num_keys: int) -> torch.Tensor:
        """Which keys each position may see, bool."""
        if num_keys > self.offset + self.length:
            raise ValueError(
                f"the cache holds {num_keys - self.length} tokens, but this forward starts at position {self.offset}: "
                "pass offset=cache.length, or a new KVCache()"
            )
        keys = torch.arange(num_keys, device=self.device)  # counted from the first key, as the queries below
        past = keys <= keys[num_keys - self.length :, None]
        if self.documents is None:
            return past
        if self.documents.shape[1] != self.offset + self.length:
            raise ValueError(
                f"documents name {self.documents.shape[1]} tokens, but {self.offset} are in the cache and {self.length} "
                "are new: with a cache, name them all"
            )
        documents = self.documents[:, -num_keys:]
        same = documents[:, num_keys - self.length :, None] == documents[:, None, :]
        return (same & past)[:, None]

    def _as_numbers(self, allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~allowed, float("-inf"))


class GroupedQueryAttention(nn.Module):
    """Causal attention whose `num_heads` query heads share `num_kv_heads` key/value heads (arXiv:2305.13245)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer_index: int,  # counted over the whole model
        bias: bool,  # of the query, key and value projections
        output_bias: bool,
        qk_norm: Callable[..., nn.Module] | None,  # called as qk_norm(dim=head_dim), for each head's queries and keys
        dropout: float,  # of attention weights
    ) -> None:
        super().__init__()
        if num_kv_heads < 1 or num_heads % num_kv_heads:
            divisors = [n for n in range(1, num_heads + 1) if num_heads % n == 0]
            raise ValueError(
                f"num_heads={num_heads} query heads cannot share num_kv_heads={num_kv_heads} key/value heads evenly: "
                f"write num_kv_heads as one of {divisors}"
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is a probability: write 0 <= dropout < 1")
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.layer_index = layer_index
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=output_bias)
        self.q_norm = None if qk_norm is None else qk_norm(dim=head_dim)
        self.k_norm = None if qk_norm is None else qk_norm(dim=head_dim)

    def forward(self, x: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`x [B, S, dim]` to `[B, S, dim]`; with a cache, its tokens are keys too, and it grows by S."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)  # [B, G, S, D]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if context.rope is not None:
            q, k = rotate(q, context.rope), rotate(k, context.rope)
        q = q.transpose(1, 2).to(v.dtype)  # under autocast a norm leaves fp32 behind
        k = k.transpose(1, 2).to(v.dtype)
        if cache is not None:
            k, v = cache.update(self.layer_index, k, v)
        k, v, mask, is_causal = self.visible(k, v, context)
        y = _attention(q, k, v, mask, self.dropout if self.training else 0.0, is_causal)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))

    def visible(self, k: torch.Tensor, v: torch.Tensor, context: Context) -> Visible:
        """Of the keys and values those that some query sees, and SDPA's `(attn_mask, is_causal)` for them."""
        return k, v, *context.mask(k.shape[2], k.dtype)


class SlidingWindow(GroupedQueryAttention):
    """Attention in which a token sees the last `window` tokens, itself included (Mistral, arXiv:2310.06825)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer_index: int,
        bias: bool,
        output_bias: bool,
        qk_norm: Callable[..., nn.Module] | None,
        dropout: float,
        window: int,  # tokens
    ) -> None:
        super().__init__(
            dim=dim,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            layer_index=layer_index,
            bias=bias,
            output_bias=output_bias,
            qk_norm=qk_norm,
            dropout=dropout,
        )
        if window < 1:
            raise ValueError(f"window={window} tokens leaves nothing to attend to: write window >= 1 (Mistral: 4096)")
        self.window = window

    def visible(self, k: torch.Tensor, v: torch.Tensor, context: Context) -> Visible:
        """The last keys and values, as views, and SDPA's `(attn_mask, is_causal)` for them."""
        reach = self.window + context.length - 1
        if k.shape[2] > reach:
            k, v = k[:, :, -reach:], v[:, :, -reach:]
        return k, v, *context.window_mask(k.shape[2], self.window, k.dtype)


def _attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float, is_causal: bool
) -> torch.Tensor:
    """SDPA whose query heads may share key/value heads; those are copied only where sharing them is slow.

    On CUDA, SDPA shares them without copies, and without its fallback that writes out all scores, through flash
    attention alone: no mask, 16-bit numbers, head_dim <= 256, compute capability 8 or above
    (github.com/huggingface/transformers/issues/48633, github.com/Comfy-Org/ComfyUI/pull/15135).
    """
    groups = q.shape[1] // k.shape[1]
    flash = mask is None and q.dtype != torch.float32 and q.shape[-1] <= 256
    if groups > 1 and q.is_cuda and not (flash and torch.cuda.get_device_capability(q.device) >= (8, 0)):
        k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
    return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal, enable_gqa=q.shape[1] != k.shape[1])
