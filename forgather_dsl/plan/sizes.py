"""How large each part of a model is: parameters, numbers kept per token for the backward pass, floating point operations.

In: the specs alone. Out: `ModelSize`, exact in parameters. Parts are known by what they build, so a subclass with other
defaults counts as its base; what a user wrote is not counted, and named in `left_out`. Which tensors the backward pass
keeps was audited with saved-tensor hooks (tests/plan/test_estimate.py does it again).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from ..dsl import Lazy

__all__ = ["Copied", "ModelSize", "PartSize", "model_size"]

Copied = Literal["never", "in windows", "always"]


class PartSize(NamedTuple):
    """One part. Numbers per token are of the activations' format (bf16 or fp32); `kept_fp32` are fp32 in any case."""

    matrices: int = 0  # parameters in 2-D weights
    vectors: int = 0  # parameters in norms and biases
    kept: int = 0  # numbers per token from the forward to the backward pass
    kept_fp32: int = 0
    owed: int = 0  # numbers per token from I to W: inputs and output gradients of the linear layers
    transient: int = 0  # gradients per token that the part makes running backward
    flops: int = 0  # forward, per token
    forward: int = 0  # numbers per token at the most, beside its input, running forward and keeping nothing
    backward: int = 0  # gradients per token at the most, beside what is kept and the gradient of the part's output
    deferred: int = 0  # the same in a backward for inputs alone, which lets no input of a linear layer go
    largest: int = 0  # parameters of its largest matrix
    short_side: int = 0  # the most that a matrix of layers has of the lesser of rows and columns
    cheap: int = 0  # of `kept`: what NormsAndActivation makes again
    attended: int = 0  # of `kept`: what attention gives, which KeepAttention keeps
    attended_fp32: int = 0  # of `kept_fp32`, likewise
    attention_flops: int = 0  # of `flops`: attention itself, no matrix product with weights
    closing: int = 0  # parameters of the matrix that it ends with, whose product nobody needs a second time

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.matrices + self.vectors

    def __add__(self, other: PartSize) -> PartSize:  # type: ignore[override]  # sizes add up, tuples would join
        most = {name: max(getattr(self, name), getattr(other, name)) for name in ("largest", "short_side")}
        return PartSize(*(a + b for a, b in zip(self, other)))._replace(**most)


class Block(NamedTuple):
    """The parts of a layer: either of its norms, attention, MLP."""

    norm: PartSize
    attention: PartSize
    mlp: PartSize

    @property
    def whole(self) -> PartSize:
        """The layer: both norms, attention, MLP."""
        gone = (
            self.mlp.kept + self.norm.kept
        )  # by the time the backward pass is at the attention, with gradients instead
        return (self.norm + self.norm + self.attention + self.mlp)._replace(
            forward=max(self.attention.forward, self.norm.cheap + self.mlp.forward),
            backward=max(self.mlp.backward, self.attention.backward - gone),
            deferred=max(self.mlp.deferred, self.attention.deferred - gone + self.mlp.owed),
            closing=self.mlp.closing,
        )


class ModelSize(NamedTuple):
    """A decoder: what the first stage has more, each layer, what the last stage has more."""

    dim: int
    vocab_size: int
    embedding: PartSize
    blocks: tuple[Block, ...]
    layers: tuple[PartSize, ...]
    final_norm: PartSize
    head: PartSize
    tied: bool
    left_out: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Of the model; tied weights once."""
        head = 0 if self.tied else self.head.parameters
        parts = (self.embedding, *self.layers, self.final_norm)
        return sum(part.parameters for part in parts) + head

    def head_shard(self, count: int) -> PartSize:
        """The largest of `count` shards of the head, cut by rows of the vocabulary as evenly as can be."""
        rows = -(-self.vocab_size // count)
        numbers = rows * self.dim
        return PartSize(matrices=numbers, kept=self.dim, owed=self.dim + rows, flops=2 * numbers, largest=numbers)


def model_size(model: Any, seq_len: int, copied: Copied = "never") -> ModelSize:
    """Sizes of a model's spec. A model that is not known counts as its embedding and head alone. `copied`: where attention
    takes a copy of the keys and values for each head that shares them, and keeps it.
    """
    return _model_size(model, seq_len, copied)


@lru_cache(maxsize=16)  # a plan asks hundreds of times for the same
def _model_size(model: Any, seq_len: int, copied: Copied) -> ModelSize:
    dim, vocab = _number(model, "dim"), _number(model, "vocab_size")
    left_out: list[str] = []
    known = {"num_heads", "norm", "attention", "mlp"} <= set(getattr(type(model), "__fields__", ()))
    if known:
        blocks = tuple(_block(model, index, seq_len, copied, left_out) for index in range(model.num_layers))
        final = _counted(_NORMS, model.norm, left_out, model.num_layers, dim)
    else:
        left_out.append(f"the layers of {type(model).__name__}")
        blocks, final = (Block(*[PartSize()] * 3),) * _number(model, "num_layers"), PartSize()
    return ModelSize(
        dim=dim,
        vocab_size=vocab,
        embedding=PartSize(matrices=vocab * dim, owed=dim, largest=vocab * dim),
        blocks=blocks,
        layers=tuple(block.whole for block in blocks),
        final_norm=final,
        head=PartSize(matrices=vocab * dim, kept=dim, owed=dim + vocab, flops=2 * vocab * dim, largest=vocab * dim),
        tied=bool(getattr(model, "tie_embeddings", False)),
        left_out=tuple(dict.fromkeys(left_out)),
    )


def _number(model: Any, name: str) -> int:
    found = getattr(model, name, 0)  # a `call` has no fields
    return found if isinstance(found, int) else 0


def _block(model: Any, index: int, seq_len: int, copied: Copied, left_out: list[str]) -> Block:
    norm = _counted(_NORMS, model.norm, left_out, index, model.dim)
    attention = _counted(_ATTENTIONS, model.attention, left_out, index, model, seq_len, copied, left_out)
    mlp = _counted(_MLPS, model.mlp, left_out, index, model.dim, model.ffn_dim)
    if model.dropout:
        left_out.append("dropout masks")
    return Block(norm, attention, mlp)


def _counted(
    known: dict[str, Callable[..., PartSize]], part: Any, left_out: list[str], layer_index: int, *context: Any
) -> PartSize:
    """The size of a part in one layer, zero and a note for an unknown one."""
    choose = getattr(type(part), "__choose__", None)  # Cycle: another part in each layer
    if choose is not None:
        part = choose(part, {"layer_index": layer_index})
    count = known.get(str(getattr(type(part), "__target__", None)))
    if count is None:
        left_out.append(type(part).__name__ if isinstance(part, Lazy) else repr(part))
        return PartSize()
    return count(part, *context)


def _rms_norm(norm: Any, dim: int) -> PartSize:
    """`cheap` is its result, which the part behind it keeps."""
    return PartSize(vectors=dim, kept=dim, kept_fp32=1, cheap=dim)


def _layer_norm(norm: Any, dim: int) -> PartSize:
    """Kept: the input, and the normalised rows that the scale multiplies; those and its result are `cheap`."""
    return PartSize(vectors=dim * (2 if norm.bias else 1), kept=2 * dim, kept_fp32=2, cheap=2 * dim)


def _attention(attention: Any, model: Any, seq_len: int, copied: Copied, left_out: list[str]) -> PartSize:
    """Query, key, value and output projections around fused attention, which keeps its inputs, output and log-sum-exp."""
    dim, heads = model.dim, model.num_heads
    q, kv = heads * model.head_dim, model.num_kv_heads * model.head_dim
    reach = min(seq_len, getattr(attention, "window", seq_len))
    rotation = 0 if getattr(type(model.rope), "__target__", None) == f"{_MODELS}.rope.NoRope" else 7 * q  # in fp32
    copies = copied == "always" or (copied == "in windows" and reach < seq_len)
    seen = q if copies and kv < q else kv  # numbers of the keys that attention keeps, and of the values
    size = PartSize(
        matrices=2 * dim * q + 2 * dim * kv,
        vectors=(q + 2 * kv if attention.bias else 0) + (dim if attention.output_bias else 0),
        kept=dim + 2 * q + 2 * seen,
        kept_fp32=heads,
        owed=2 * dim + 2 * q + 2 * kv,
        transient=q + 2 * kv,
        flops=2 * (2 * dim * q + 2 * dim * kv) + 2 * q * reach,  # causal: half of the scores
        forward=dim + 2 * q + max(2 * seen + dim, 2 * kv + rotation - q),
        backward=max(
            2 * q + 2 * seen, 5 * q if rotation else 0
        ),  # attention's gradients; or three of a query's size in fp32
        deferred=max(2 * q + 2 * seen, 6 * q - dim if rotation else 0),
        largest=dim * max(q, kv),
        short_side=min(dim, q),
        attended=0 if attention.dropout else q,
        attended_fp32=0 if attention.dropout else heads,
        attention_flops=0 if attention.dropout else 2 * q * reach,
    )
    if attention.dropout:
        left_out.append("attention dropout")
    if attention.qk_norm is None:
        return size
    unknown: list[str] = []
    norm = _counted(_NORMS, attention.qk_norm, unknown, 0, model.head_dim)
    left_out += unknown
    cheap = 0 if rotation else q + kv  # what is rotated is made again with the rotation only
    rows = PartSize(kept=q + kv, kept_fp32=(heads + model.num_kv_heads) * norm.kept_fp32, cheap=cheap)  # of each head
    return size + PartSize(vectors=2 * norm.vectors) + (PartSize() if unknown else rows)


def _swiglu(mlp: Any, dim: int, ffn: int) -> PartSize:
    """Kept: the input, gate, up, silu(gate), their product."""
    return PartSize(
        matrices=3 * dim * ffn,
        vectors=2 * ffn + dim if mlp.bias else 0,
        kept=dim + 4 * ffn,
        owed=2 * dim + 3 * ffn,
        transient=dim + 2 * ffn,
        flops=6 * dim * ffn,
        forward=dim + 3 * ffn,
        backward=2 * ffn,
        deferred=3 * ffn,
        largest=dim * ffn,
        short_side=min(dim, ffn),
        cheap=2 * ffn,
        closing=dim * ffn,
    )


def _two_matrices(mlp: Any, dim: int, ffn: int) -> PartSize:
    """Kept: the input, before and after the activation function (of squared ReLU: the ReLU and its square)."""
    return PartSize(
        matrices=2 * dim * ffn,
        vectors=ffn + dim if mlp.bias else 0,
        kept=dim + 2 * ffn,
        owed=2 * dim + 2 * ffn,
        transient=dim + ffn,
        flops=4 * dim * ffn,
        forward=dim + 2 * ffn,
        backward=ffn,
        deferred=2 * ffn,
        largest=dim * ffn,
        short_side=min(dim, ffn),
        cheap=ffn,
        closing=dim * ffn,
    )


_MODELS = "forgather_dsl.models"
_NORMS = {f"{_MODELS}.norms.RMSNorm": _rms_norm, f"{_MODELS}.norms.LayerNorm": _layer_norm}
_ATTENTIONS = {
    f"{_MODELS}.attention.GroupedQueryAttention": _attention,
    f"{_MODELS}.attention.SlidingWindow": _attention,
}
_MLPS = {
    f"{_MODELS}.mlp.SwiGLU": _swiglu,
    f"{_MODELS}.mlp.GELUMLP": _two_matrices,
    f"{_MODELS}.mlp.ReLUSquaredMLP": _two_matrices,
}
