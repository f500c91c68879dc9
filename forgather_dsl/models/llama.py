"""Decoder-only transformers of the Llama family: Llama 2 and 3, Mistral, Qwen 2 and 3, by choice of parts.

Token ids `[batch, seq]` in, logits `[batch, seq, vocab]` out. The parts (norm, attention, mlp, rope) are factories,
called once per place. Constructing on the meta device is free; it raises `ValueError` for sizes that make no model.
Parameters carry the names of transformers, so its checkpoints load without renaming. A pipeline stage drops what it does
not own (see `parts`) and calls the rest itself; `forward` is for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from forgather_dsl.models.attention import Context
from forgather_dsl.models.cache import KVCache
from forgather_dsl.models.rope import NoRope, Rope


class Block(nn.Module):
    """One layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`, with dropout on both branches."""

    def __init__(
        self,
        self_attn: nn.Module,
        mlp: nn.Module,
        input_layernorm: nn.Module,
        post_attention_layernorm: nn.Module,
        dropout: float,
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = input_layernorm
        self.post_attention_layernorm = post_attention_layernorm
        self.dropout = dropout

    def forward(self, x: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`x [batch, seq, dim]` to `[batch, seq, dim]`; dropout draws from the global generator."""
        # no names for what the branches return: a name would keep it alive through the other branch
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), context, cache), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Decoder(nn.Module):
    """Embedding, layers and final norm, under the names that transformers gives them."""

    def __init__(self, embed_tokens: nn.Embedding, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.layers = layers
        self.norm = norm

    def forward(self, tokens: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`tokens [batch, seq]` to hidden states `[batch, seq, dim]`."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, context, cache)
        return self.norm(x)


class Llama(nn.Module):
    """A causal language model. Its weights are meaningless before `draw_weights` or a checkpoint fills them."""

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        ffn_dim: int,
        vocab_size: int,
        norm: Callable[..., nn.Module],  # called as norm(dim=, layer_index=), the final one with layer_index=num_layers
        attention: Callable[..., nn.Module],  # attention(dim=, num_heads=, num_kv_heads=, head_dim=, layer_index=)
        mlp: Callable[..., nn.Module],  # mlp(dim=, ffn_dim=, layer_index=)
        rope: Callable[..., Rope | NoRope],  # rope(head_dim=)
        tie_embeddings: bool,
        dropout: float,  # of what each block adds to the residual stream
        init: Any,  # draws the weights of linear and embedding layers, as models.init.NormalInit does
    ) -> None:
        super().__init__()
        if min(dim, num_layers, num_heads, head_dim, vocab_size) < 1:
            sizes = f"dim={dim}, num_layers={num_layers}, num_heads={num_heads}, head_dim={head_dim}, {vocab_size=}"
            raise ValueError(f"{sizes} makes no model: write numbers from 1 up")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is a probability: write 0 <= dropout < 1")
        layers = nn.ModuleList()
        for i in range(num_layers):
            layers.append(
                Block(
                    self_attn=attention(
                        dim=dim, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, layer_index=i
                    ),
                    mlp=mlp(dim=dim, ffn_dim=ffn_dim, layer_index=i),
                    input_layernorm=norm(dim=dim, layer_index=i),
                    post_attention_layernorm=norm(dim=dim, layer_index=i),
                    dropout=dropout,
                )
            )
        self.model = Decoder(nn.Embedding(vocab_size, dim), layers, norm(dim=dim, layer_index=num_layers))
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        if tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.rope = rope(head_dim=head_dim)
        self.init = init
        self.tied = tie_embeddings

    @property
    def layers(self) -> nn.ModuleList:
        """All layers by global index, called `layer(x, context, cache)`."""
        return self.model.layers

    @property
    def tied_weights(self) -> dict[str, str]:
        """Names that share the Parameter of another name: the head's and the embedding's when tied."""
        return {"lm_head.weight": "model.embed_tokens.weight"} if self.tied else {}

    def context(self, length: int, offset: int, documents: torch.Tensor | None, device: torch.device | str) -> Context:
        """What the layers need to know of the positions `offset .. offset + length`; needs none of the weights.

        `documents` are ids `[batch, offset + length]` or None: attention never crosses from one id to another.
        """
        positions = torch.arange(offset, offset + length, device=device)
        return Context(self.rope.tables(positions, device), length, offset, documents, device)

    def forward(
        self, tokens: torch.Tensor, documents: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """Logits `[batch, seq, vocab]` of `tokens [batch, seq]`, which follow those in the cache if there is one.

        `documents` are ids that attention never crosses, of the cached tokens and the new ones.
        """
        offset = 0 if cache is None else cache.length
        context = self.context(tokens.shape[1], offset, documents, tokens.device)
        return self.lm_head(self.model(tokens, context, cache))
