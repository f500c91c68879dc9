"""A small transformer that follows the Model protocol without using forgather_dsl.models, for the pipeline's tests."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F


class Norm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight).to(x.dtype)


class Block(nn.Module):
    """Attention and MLP with biases on some layers, so that bias gradients are covered."""

    def __init__(self, dim, heads, index, dropout):
        super().__init__()
        self.index, self.heads, self.dropout = index, heads, dropout
        self.norm1, self.norm2 = Norm(dim), Norm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=True)
        self.out = nn.Linear(dim, dim, bias=False)
        self.up = nn.Linear(dim, 2 * dim, bias=False)
        self.down = nn.Linear(2 * dim, dim, bias=True)

    def forward(self, x, context, cache):
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        if cache is not None:
            k, v = cache.update(self.index, k, v)
        a = F.scaled_dot_product_attention(q + context.position, k, v, attn_mask=context.mask)
        x = x + F.dropout(self.out(a.transpose(1, 2).flatten(2)), self.dropout, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norm2(x)))), self.dropout, self.training)


class StandIn(nn.Module):
    def __init__(self, layers=4, dim=16, vocab=23, tied=False, dropout=0.0):
        super().__init__()
        self.tied, self.dropout, self.heads = tied, dropout, 2
        self.embed = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Block(dim, self.heads, index, dropout) for index in range(layers))
        self.norm = Norm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def context(self, length, offset, documents, device):
        at, seen = torch.arange(offset, offset + length, device=device), torch.arange(offset + length, device=device)
        mask = at[:, None] >= seen[None]
        if documents is not None:
            mask = mask & (documents[:, None, :, None] == documents[:, None, None, :])
        return SimpleNamespace(position=torch.sin(at.float())[:, None], mask=mask)

    def forward(self, tokens, documents=None):
        context = self.context(tokens.shape[1], 0, documents, tokens.device)
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, context, None)
        return self.head(self.norm(x))


def fill(model, seed=0):
    """Weights that depend on the seed and the full name alone; a tied head is left to the embedding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(seed + sum(map(ord, name)) * 1009 + len(name))
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + (0.8 if "norm" in name else 0.0))
    return model


def meta_model(**options):
    with torch.device("meta"):
        return StandIn(**options)


def loss_sum(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=-100, reduction="sum")


def batch(sequences=8, seq=12, vocab=23, seed=1):
    """Tokens, targets (some masked out) and document ids."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocab, (sequences, seq), generator=generator)
    targets = torch.randint(vocab, (sequences, seq), generator=generator)
    targets[torch.rand(sequences, seq, generator=generator) < 0.2] = -100
    documents = (torch.rand(sequences, seq, generator=generator) < 0.2).long().cumsum(1)
    return tokens, targets, documents
