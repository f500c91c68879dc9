"""The model of experiments/tiny_llama.py:Baseline, written by hand: what the emitted file is measured against.

A Llama of 4.2 M parameters with documents that attention does not cross, a KV cache, seeded first weights and a reader
of safetensors.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

Tables = tuple[torch.Tensor, torch.Tensor]

BLOCK = 256  # tokens by which a cache grows
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class KVCache:
    """Keys and values of the tokens so far, per layer `[batch, num_kv_heads, tokens, head_dim]`."""

    def __init__(self) -> None:
        self._keys: dict[int, torch.Tensor] = {}  # with room to grow
        self._values: dict[int, torch.Tensor] = {}
        self._lengths: dict[int, int] = {}

    @property
    def length(self) -> int:
        """Tokens that every layer has seen."""
        return min(self._lengths.values(), default=0)

    def update(self, layer_index: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append new keys and values; return all of the layer's, as views."""
        if k.requires_grad or v.requires_grad:
            raise ValueError("a KVCache passes no gradients: call the model inside torch.inference_mode()")
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
        if old is not None and old.shape[:2] != k.shape[:2]:
            raise ValueError("this cache is of another batch: make a new KVCache()")
        if old is not None and tokens <= old.shape[2]:
            return
        stored = self._lengths.get(layer_index, 0)
        for store, new in ((self._keys, k), (self._values, v)):
            grown = new.new_empty(new.shape[0], new.shape[1], -(-tokens // BLOCK) * BLOCK, new.shape[3])
            if stored:
                grown[:, :, :stored] = store[layer_index][:, :, :stored]
            store[layer_index] = grown


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension, computed in fp32 inside."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., dim]` to `[..., dim]`."""
        with autocast_off(x):
            return F.rms_norm(x, (self.dim,), self.weight.to(x.dtype), self.eps)


def autocast_off(x: torch.Tensor) -> AbstractContextManager[object]:
    """The fused norm computes in fp32 by itself."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Rope(nn.Module):
    """Rotary position embedding, feature i paired with i + head_dim/2."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def tables(self, positions: torch.Tensor) -> Tables:
        """Cosines and signed sines of `positions [seq]`, both fp32 `[seq, head_dim]`."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=positions.device) / self.head_dim
        angles = torch.outer(positions.to(torch.float32), 1.0 / self.theta**exponents)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Rotate `x [batch, seq, heads, head_dim]` by its positions."""
    cos, sin = tables
    half = x.shape[-1] // 2
    return (x * cos[:, None] + x.roll(half, dims=-1) * sin[:, None]).to(x.dtype)


class Context:
    """What the layers share in one forward: rotations, and masks made once."""

    def __init__(self, rope: Tables, length: int, offset: int, documents: torch.Tensor | None) -> None:
        self.rope = rope
        self.length = length
        self.offset = offset
        self.documents = documents
        self._masks: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def mask(self, num_keys: int, dtype: torch.dtype) -> tuple[torch.Tensor | None, bool]:
        """SDPA's `(attn_mask, is_causal)`."""
        if num_keys > self.offset + self.length:
            raise ValueError(f"the cache holds more than the {self.offset} tokens before this forward")
        if self.documents is None and num_keys == self.length:
            return None, True
        if self.documents is None and self.length == 1:
            return None, False
        key = (num_keys, dtype)
        if key not in self._masks:
            allowed = self._past(num_keys)
            mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
            self._masks[key] = mask.masked_fill_(~allowed, float("-inf"))
        return self._masks[key], False

    def _past(self, num_keys: int) -> torch.Tensor:
        keys = torch.arange(num_keys, device=self.rope[0].device)
        past = keys <= keys[num_keys - self.length :, None]
        if self.documents is None:
            return past
        if self.documents.shape[1] != self.offset + self.length:
            raise ValueError("with a cache, documents name its tokens too")
        documents = self.documents[:, -num_keys:]
        same = documents[:, num_keys - self.length :, None] == documents[:, None, :]
        return (same & past)[:, None]


class Attention(nn.Module):
    """Causal attention."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, layer_index: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.layer_index = layer_index
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=False)

    def forward(self, x: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`x [batch, seq, dim]` to `[batch, seq, dim]`."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(batch, length, self.num_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.num_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, context.rope), rotate(k, context.rope)
        q = q.transpose(1, 2).to(v.dtype)
        k = k.transpose(1, 2).to(v.dtype)
        if cache is not None:
            k, v = cache.update(self.layer_index, k, v)
        mask, is_causal = context.mask(k.shape[2], k.dtype)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, self.num_heads * self.head_dim))


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=False)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, dim]` to `[batch, seq, dim]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: `x + attention(norm(x))`, then `x + mlp(norm(x))`."""

    def __init__(self, dim: int, num_heads: int, head_dim: int, ffn_dim: int, layer_index: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(dim, num_heads, head_dim, layer_index, dropout=0.0)
        self.mlp = SwiGLU(dim, ffn_dim)
        self.input_layernorm = RMSNorm(dim, eps=1e-5)
        self.post_attention_layernorm = RMSNorm(dim, eps=1e-5)
        self.dropout = dropout

    def forward(self, x: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`x [batch, seq, dim]` to `[batch, seq, dim]`."""
        x = x + F.dropout(self.self_attn(self.input_layernorm(x), context, cache), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class Decoder(nn.Module):
    """Embedding, layers and final norm."""

    def __init__(
        self, dim: int, num_layers: int, num_heads: int, head_dim: int, ffn_dim: int, vocab_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(Block(dim, num_heads, head_dim, ffn_dim, i, dropout) for i in range(num_layers))
        self.norm = RMSNorm(dim, eps=1e-5)

    def forward(self, tokens: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`tokens [batch, seq]` to hidden states `[batch, seq, dim]`."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, context, cache)
        return self.norm(x)


class Llama(nn.Module):
    """A causal language model."""

    def __init__(
        self, dim: int, num_layers: int, num_heads: int, head_dim: int, ffn_dim: int, vocab_size: int, dropout: float
    ) -> None:
        super().__init__()
        self.model = Decoder(dim, num_layers, num_heads, head_dim, ffn_dim, vocab_size, dropout)
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.rope = Rope(head_dim, theta=10000.0)

    def forward(
        self, tokens: torch.Tensor, documents: torch.Tensor | None = None, cache: KVCache | None = None
    ) -> torch.Tensor:
        """Logits `[batch, seq, vocab]` of `tokens [batch, seq]`, which follow those in the cache."""
        offset = 0 if cache is None else cache.length
        positions = torch.arange(offset, offset + tokens.shape[1], device=tokens.device)
        context = Context(self.rope.tables(positions), tokens.shape[1], offset, documents)
        return self.lm_head(self.model(tokens, context, cache))


CHUNK = 1 << 23  # numbers drawn at a time: a multiple of 16, which changes no bit


@torch.no_grad()
def draw_weights(model: Llama, seed: int) -> None:
    """First weights: normal of deviation 0.02, norms 1; a value depends on the seed and the parameter's name alone."""
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
            continue
        digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big"))
        flat = parameter.view(-1)
        ends = [*range(CHUNK, len(flat) - 15, CHUNK), len(flat)]
        for start, end in zip([0, *ends], ends):
            flat[start:end].copy_(torch.empty(end - start).normal_(0.0, 0.02, generator=generator))


def build_model() -> Llama:
    """The model with the sizes of the experiment; its weights are yet to be filled."""
    return Llama(dim=192, num_layers=6, num_heads=6, head_dim=32, ffn_dim=512, vocab_size=4096, dropout=0.0)


def load_model(path: str = "model.safetensors", device: str = "cpu") -> Llama:
    """The model with the weights of a safetensors file, or of the files that an index names."""
    file = Path(path)
    if file.suffix == ".json":
        names = sorted(set(json.loads(file.read_text())["weight_map"].values()))
        state = {k: v for name in names for k, v in read_tensors(file.parent / name).items()}
    else:
        state = read_tensors(file)
    with torch.device("meta"):
        model = build_model()
    model.load_state_dict(state, strict=True, assign=True)
    return model.to(device).eval()


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of one safetensors file, mapped into memory. Raises ValueError when it is cut off."""
    with file.open("rb") as stream:
        data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    state = {}
    for name, entry in header.items():
        start, end = (8 + size + offset for offset in entry["data_offsets"])
        if end > len(data):
            raise ValueError(f"{file} is cut off: it ends before {name}")
        dtype = DTYPES[entry["dtype"]]
        if start == end:
            state[name] = torch.empty(entry["shape"], dtype=dtype)
        else:
            count = (end - start) // dtype.itemsize
            state[name] = torch.frombuffer(data, dtype=dtype, count=count, offset=start).reshape(entry["shape"])
    return state
