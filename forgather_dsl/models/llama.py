"""Decoder-only transformers of the Llama family: Llama 2 and 3, Mistral, Qwen 2 and 3, by choice of parts.

Token ids `[batch, seq]` in, logits `[batch, seq, vocab]` out. The parts (norm, attention, mlp, rope) are factories,
called once per place. Parameters carry the names of transformers, so its checkpoints load without renaming.
A pipeline stage sets what it does not own to None (`layers[i]`, `embed`, `norm`, `head`) and calls the rest itself;
`forward` is for the whole model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F

from forgather_dsl.models.attention import Context
from forgather_dsl.models.cache import KVCache
from forgather_dsl.models.rope import NoRope, Rope


class Initialiser(Protocol):
    """What draws the weights of linear and embedding layers; see `forgather_dsl.models.init.NormalInit`."""

    def draw(self, name: str, shape: torch.Size, num_layers: int, generator: torch.Generator) -> torch.Tensor:
        """The values of the weight called `name`, fp32 on the CPU."""
        ...


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
    """Embedding, layers and final norm under the names that transformers gives them; `Llama` runs them."""

    def __init__(self, embed_tokens: nn.Module, layers: nn.ModuleList, norm: nn.Module) -> None:
        super().__init__()
        self.embed_tokens: nn.Module | None = embed_tokens
        self.layers = layers
        self.norm: nn.Module | None = norm


class Llama(nn.Module):
    """A causal language model.

    Factories are called as `norm(dim=, layer_index=)` (the final norm with `layer_index=num_layers`),
    `attention(dim=, num_heads=, num_kv_heads=, head_dim=, layer_index=)`, `mlp(dim=, ffn_dim=, layer_index=)` and
    `rope(head_dim=)`. `head_dim=None` is `dim / num_heads`; `init` is what `initialise` draws with.
    Constructing on the meta device is free; weights are meaningless until `initialise` or a checkpoint fills them.
    Raises `ValueError` for sizes that are not positive or do not divide.
    """

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int | None,
        ffn_dim: int,
        vocab_size: int,
        norm: Callable[..., nn.Module],
        attention: Callable[..., nn.Module],
        mlp: Callable[..., nn.Module],
        rope: Callable[..., Rope | NoRope],
        tie_embeddings: bool,
        dropout: float,
        init: Initialiser,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "vocab_size": vocab_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} makes no model: write {name} >= 1")
        head_dim = _head_dim(dim, num_heads, head_dim)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is a probability: write 0 <= dropout < 1")
        heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim}
        layers = nn.ModuleList()
        for i in range(num_layers):
            block = Block(
                self_attn=attention(dim=dim, **heads, layer_index=i),
                mlp=mlp(dim=dim, ffn_dim=ffn_dim, layer_index=i),
                input_layernorm=norm(dim=dim, layer_index=i),
                post_attention_layernorm=norm(dim=dim, layer_index=i),
                dropout=dropout,
            )
            layers.append(block)
        embed, head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size, bias=False)
        if tie_embeddings:
            head.weight = embed.weight
        self.model = Decoder(embed, layers, norm(dim=dim, layer_index=num_layers))
        self.lm_head: nn.Module | None = head
        self.rope = rope(head_dim=head_dim)
        self.init = init
        self.tied = tie_embeddings
        self.dropout = _largest_dropout(layers)  # 0.0 says that a training forward draws no random numbers

    @property
    def embed(self) -> nn.Module | None:
        """Token embedding, `[batch, seq]` ids to `[batch, seq, dim]`; may be set to None, nothing else."""
        return self.model.embed_tokens

    @embed.setter
    def embed(self, nothing: None) -> None:
        self.model.embed_tokens = nothing

    @property
    def layers(self) -> nn.ModuleList:
        """All layers by global index, called `layer(x, context, cache)`; entries may be set to None."""
        return self.model.layers

    @property
    def norm(self) -> nn.Module | None:
        """The norm before the head; may be set to None, nothing else."""
        return self.model.norm

    @norm.setter
    def norm(self, nothing: None) -> None:
        self.model.norm = nothing

    @property
    def head(self) -> nn.Module | None:
        """Hidden states to logits `[batch, seq, vocab]`; may be set to None, nothing else."""
        return self.lm_head

    @head.setter
    def head(self, nothing: None) -> None:
        self.lm_head = nothing

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
        embed, norm, head = self.embed, self.norm, self.head
        if embed is None or norm is None or head is None:
            raise ValueError(
                "this model holds one pipeline stage only, and forward needs all of it: run its parts through the "
                "stage, or build the whole model"
            )
        x = embed(tokens)
        for layer in self.layers:
            x = layer(x, context, cache)
        return head(norm(x))


def _largest_dropout(layers: nn.ModuleList) -> float:
    probabilities = [0.0]
    for module in layers.modules():
        p = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
        if isinstance(p, float):
            probabilities.append(p)
    return max(probabilities)


def _head_dim(dim: int, num_heads: int, head_dim: int | None) -> int:
    if head_dim is None:
        if dim % num_heads:
            nearest = max(num_heads, round(dim / num_heads) * num_heads)
            raise ValueError(
                f"dim={dim} does not divide into num_heads={num_heads} heads: write dim={nearest}, or give head_dim"
            )
        return dim // num_heads
    if head_dim < 1:
        raise ValueError(f"head_dim={head_dim} makes no head: write head_dim >= 1, or None for dim / num_heads")
    return head_dim
