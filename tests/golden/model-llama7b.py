"""Llama, from forgather_dsl.models.llama (sources e280771436aa).

Standalone PyTorch source: needs torch alone.
Written for one configuration, in which

    forgather_dsl.models.attention:130  qk_norm is None  ->  True
    forgather_dsl.models.attention:131  qk_norm is None  ->  True
    forgather_dsl.models.attention:139  self.q_norm is not None and self.k_norm is not None  ->  False
    forgather_dsl.models.init:46  self.depth_scaled and name.split('.')[-2] in _RESIDUAL_OUTPUTS  ->  False
    forgather_dsl.models.llama:106  tie_embeddings  ->  False

13 checks of arguments, passed by this configuration, are left out.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

Tables = tuple[torch.Tensor, torch.Tensor]
_BLOCK = 256  # tokens
Visible = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, bool]  # keys, values, and SDPA's mask and is_causal
CHUNK = 1 << 23  # numbers drawn at a time, 32 MiB: a multiple of 16, which torch draws together, so it changes no bit


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


def rotate(x: torch.Tensor, tables: Tables) -> torch.Tensor:
    """Rotate `x [batch, seq, heads, head_dim]` by its positions, in fp32 whatever the dtype of x."""
    cos, sin = tables
    half = x.shape[-1] // 2
    return (x * cos[:, None] + x.roll(half, dims=-1) * sin[:, None]).to(x.dtype)


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
        dropout: float,  # of attention weights
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.layer_index = layer_index
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, num_heads * head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, num_kv_heads * head_dim, bias=bias)
        self.o_proj = nn.Linear(num_heads * head_dim, dim, bias=output_bias)

    def forward(self, x: torch.Tensor, context: Context, cache: KVCache | None) -> torch.Tensor:
        """`x [B, S, dim]` to `[B, S, dim]`; with a cache, its tokens are keys too, and it grows by S."""
        batch, length, _ = x.shape
        q = self.q_proj(x).view(batch, length, self.num_heads, self.head_dim)
        k = self.k_proj(x).view(batch, length, self.num_kv_heads, self.head_dim)
        v = self.v_proj(x).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)  # [B, G, S, D]
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


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, the MLP of Llama (Shazeer, arXiv:2002.05202)."""

    def __init__(self, dim: int, ffn_dim: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.up_proj = nn.Linear(dim, ffn_dim, bias=bias)
        self.down_proj = nn.Linear(ffn_dim, dim, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[batch, seq, dim]` to `[batch, seq, dim]`."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def _autocast_off(x: torch.Tensor) -> AbstractContextManager[object]:
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)  # "meta" has no autocast


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x**2) + eps) * weight` over the last dimension (Zhang and Sennrich, arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.dim = dim
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Scale 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., dim]` to `[..., dim]`."""
        with _autocast_off(x):
            return F.rms_norm(x, (self.dim,), self.weight.to(x.dtype), self.eps)  # the fused kernels want one dtype

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.dim}, eps={self.eps}"


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


class Rope(nn.Module):
    """Rotation by `position * theta**(-2i/head_dim)` in each of the head_dim/2 planes."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def frequencies(self, device: torch.device | str) -> torch.Tensor:
        """Radians per position of each plane, fp32 `[head_dim/2]`."""
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        return 1.0 / self.theta**exponents

    def tables(self, positions: torch.Tensor, device: torch.device | str) -> Tables:
        """Cosines and signed sines (minus for the first half) of `positions [seq]`, both fp32 `[seq, head_dim]`."""
        angles = torch.outer(positions.to(device, torch.float32), self.frequencies(device))
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return f"{self.head_dim}, theta={self.theta}"


class Llama3Rope(Rope):
    """`Rope` stretched to `factor` times the context it was trained on, as Llama 3.1 does it (arXiv:2407.21783).

    Wavelengths shorter than `original_max_position / high_freq_factor` stay, those longer than
    `original_max_position / low_freq_factor` grow by `factor`, those between are blended.
    """

    def __init__(
        self,
        head_dim: int,
        theta: float,
        factor: float,
        low_freq_factor: float,
        high_freq_factor: float,
        original_max_position: int,
    ) -> None:
        super().__init__(head_dim, theta)
        self.factor = factor
        self.low_freq_factor = low_freq_factor
        self.high_freq_factor = high_freq_factor
        self.original_max_position = original_max_position

    def frequencies(self, device: torch.device | str) -> torch.Tensor:
        """Radians per position of each plane after stretching, fp32 `[head_dim/2]`."""
        plain = super().frequencies(device)
        wavelengths = 2 * math.pi / plain  # positions per full turn
        turns = self.original_max_position / wavelengths  # within the original context
        keep = ((turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return (1 - keep) * plain / self.factor + keep * plain

    def extra_repr(self) -> str:
        """The sizes, for `print(model)`."""
        return (
            f"{super().extra_repr()}, factor={self.factor}, low_freq_factor={self.low_freq_factor}, "
            f"high_freq_factor={self.high_freq_factor}, original_max_position={self.original_max_position}"
        )


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
        dropout: float,  # of what each block adds to the residual stream
        init: Any,  # draws the weights of linear and embedding layers, as models.init.NormalInit does
    ) -> None:
        super().__init__()
        layers = nn.ModuleList()
        for i in range(num_layers):
            layers.append(
                Block(
                    self_attn=GroupedQueryAttention(
                        dim=dim,
                        num_heads=num_heads,
                        num_kv_heads=num_kv_heads,
                        head_dim=head_dim,
                        layer_index=i,
                        bias=False,
                        output_bias=False,
                        dropout=0.0,
                    ),
                    mlp=SwiGLU(dim=dim, ffn_dim=ffn_dim, bias=False),
                    input_layernorm=RMSNorm(dim=dim, eps=1e-05),
                    post_attention_layernorm=RMSNorm(dim=dim, eps=1e-05),
                    dropout=dropout,
                )
            )
        self.model = Decoder(nn.Embedding(vocab_size, dim), layers, RMSNorm(dim=dim, eps=1e-05))
        self.lm_head = nn.Linear(dim, vocab_size, bias=False)
        self.rope = Llama3Rope(
            head_dim=head_dim,
            theta=500000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position=8192,
        )
        self.init = init

    @property
    def layers(self) -> nn.ModuleList:
        """All layers by global index, called `layer(x, context, cache)`."""
        return self.model.layers

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


class NormalInit:
    """Normal values of mean 0 and standard deviation `std`."""

    def __init__(
        self,
        std: float,  # so that the sum of all layers' outputs keeps its size whatever the depth
    ) -> None:
        self.std = std

    def fill(self, name: str, flat: Any, num_layers: int, generator: torch.Generator) -> None:
        """Give the weight called `name` (such as `model.layers.0.mlp.up_proj.weight`) its values, drawn in fp32 on the CPU.

        `flat`: its numbers in one dimension, of any format and device; a chunk at a time is copied to them.
        """
        std = self.std
        ends = [*range(CHUNK, len(flat) - 15, CHUNK), len(flat)]  # a rest too short to be drawn alike joins the last
        for start, end in zip([0, *ends], ends):
            flat[start:end].copy_(torch.empty(end - start, dtype=torch.float32).normal_(0.0, std, generator=generator))


def _is_plain(module: nn.Module) -> bool:
    """A linear or embedding layer, or a subclass that does not bring its own first weights."""
    return (isinstance(module, nn.Linear) and type(module).reset_parameters is nn.Linear.reset_parameters) or (
        isinstance(module, nn.Embedding) and type(module).reset_parameters is nn.Embedding.reset_parameters
    )


def generator_seed(seed: int, name: str) -> int:
    """Of the generator that draws the parameter called `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def _reset(module: Any, generator_seed: int) -> None:
    """Run `reset_parameters` on a copy of the module in fp32 on the CPU, as GPUs draw other numbers; copy the results."""
    scratch = copy.deepcopy(module).to("cpu").float()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_seed)  # torch.manual_seed would reseed the GPUs too
        scratch.reset_parameters()
    filled = dict(scratch.named_parameters()) | dict(scratch.named_buffers())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.copy_(filled[name])


@torch.no_grad()
def draw_weights(model: Any, seed: int, within: frozenset[nn.Module] | None = None) -> None:
    """Fill every parameter of `model` for the first time, or those of the modules `within`.

    Linear and embedding weights come from `model.init.fill`, their biases are 0. Any other module (and every module
    of a model without `init`) is filled by its own `reset_parameters`, after its children, from a generator seeded by
    its name. A shared weight is drawn once, under its first name.
    """
    init = getattr(model, "init", None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in reversed(list(model.named_modules())):  # children come before what holds them
        if within is not None and module not in within:
            continue
        if init is not None and _is_plain(module):
            name = names.pop(id(module.weight), None)
            if name is not None:
                generator = torch.Generator("cpu").manual_seed(generator_seed(seed, name))
                init.fill(name, module.weight.view(-1), len(model.layers), generator)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        elif hasattr(module, "reset_parameters"):
            _reset(module, generator_seed(seed, path))


def build_model() -> Llama:
    """The model as it was traced, with fresh weights."""
    return Llama(
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_dim=14336,
        vocab_size=128256,
        dropout=0.0,
        init=NormalInit(std=0.02),
    )


def load_model(path: str = "model.safetensors", device: str = "cpu") -> Llama:
    """The model with the weights of a safetensors file, or of an index (.json) of several, in eval mode.

    Raises `ValueError` for a damaged file, and `RuntimeError` when its names or shapes are not the model's.
    """
    paths = [path]
    if path.endswith(".json"):
        with open(path, encoding="utf-8") as index:
            shards = sorted(set(json.load(index)["weight_map"].values()))
        paths = [os.path.join(os.path.dirname(path), shard) for shard in shards]
    dtypes = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
        "F8_E4M3": torch.float8_e4m3fn,
        "F8_E5M2": torch.float8_e5m2,
        "I64": torch.int64,
        "I32": torch.int32,
        "I16": torch.int16,
        "I8": torch.int8,
        "U8": torch.uint8,
        "BOOL": torch.bool,
    }
    state = {}
    for part in paths:
        size = os.path.getsize(part)
        with open(part, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(start - 8)) if 8 < start <= size else {}
        header.pop("__metadata__", None)
        if not 8 < start <= size or any(start + entry["data_offsets"][1] > size for entry in header.values()):
            raise ValueError(f"{part} is cut short, or no safetensors file: {size} bytes")
        data = torch.from_file(part, shared=False, size=size, dtype=torch.uint8)  # read when it is copied
        for name, entry in header.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            values = data[first:last] if first % 8 == 0 else data[first:last].clone()  # a view has to be aligned
            state[name] = values.view(dtypes[entry["dtype"]]).reshape(entry["shape"])
    model = build_model()
    model.load_state_dict(state, strict=True)
    return model.to(device).eval()
