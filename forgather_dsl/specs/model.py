"""Models and their parts as types: `Llama`, norms, attentions, MLPs, position codes, initialisers.

Every default of the modules in `models/` is stated here and only here. A part in a `Factory` field is built once per layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from ..dsl import REQUIRED, Factory, Lazy, derived
from .validators import LARGEST_SIZE, at_least, base, fraction, positive

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")


class Norm(Lazy[T], abstract=True, runtime=("dim",)):
    """Normalises the last dimension; built with the width it works on."""

    eps: float = attrs.field(default=1e-5, validator=positive)


class RMSNorm(Norm["forgather_dsl.models.norms.RMSNorm"]):
    """Root mean square norm (https://arxiv.org/abs/1910.07467)."""


class LayerNorm(Norm["forgather_dsl.models.norms.LayerNorm"]):
    """Layer norm (https://arxiv.org/abs/1607.06450)."""

    bias: bool = False


class PositionCode(Lazy[T], abstract=True, runtime=("head_dim",)):
    """How attention knows where a token stands; built with the width of a head."""


class Rope(PositionCode["forgather_dsl.models.rope.Rope"]):
    """Rotary position embedding (https://arxiv.org/abs/2104.09864)."""

    theta: float = attrs.field(default=10_000.0, validator=base)


class Llama3Rope(PositionCode["forgather_dsl.models.rope.Llama3Rope"]):
    """Rotary embedding with Llama 3.1's frequency scaling for long contexts."""

    theta: float = attrs.field(default=500_000.0, validator=base)
    factor: float = attrs.field(default=8.0, validator=at_least(1))
    low_freq_factor: float = attrs.field(default=1.0, validator=positive)
    high_freq_factor: float = attrs.field(default=4.0, validator=positive)
    original_max_position: int = attrs.field(default=8192, validator=at_least(1))

    def __check__(self) -> Any:
        if self.low_freq_factor >= self.high_freq_factor:
            yield (
                "low_freq_factor",
                f"{self.low_freq_factor} leaves nothing to blend below high_freq_factor {self.high_freq_factor}; "
                "write a smaller one (Llama 3.1 uses 1.0 and 4.0)",
            )


class NoRope(PositionCode["forgather_dsl.models.rope.NoRope"]):
    """No position code: order is known from the causal mask alone (https://arxiv.org/abs/2305.19466)."""


class Attention(Lazy[T], abstract=True, runtime=("dim", "num_heads", "num_kv_heads", "head_dim", "layer_index")):
    """Causal self-attention of one layer; sizes come from the model."""

    bias: bool = False  # of the query, key and value projections
    output_bias: bool = False
    qk_norm: Factory[Norm] | None = None  # on each head's queries and keys
    dropout: float = attrs.field(default=0.0, validator=fraction)  # of attention weights


class GroupedQueryAttention(Attention["forgather_dsl.models.attention.GroupedQueryAttention"]):
    """Attention whose key and value heads serve several query heads (https://arxiv.org/abs/2305.13245)."""


class SlidingWindow(Attention["forgather_dsl.models.attention.SlidingWindow"]):
    """Each token attends to the last `window` tokens, itself included (Mistral, https://arxiv.org/abs/2310.06825)."""

    window: int = attrs.field(default=4096, validator=at_least(1))


class MLP(Lazy[T], abstract=True, runtime=("dim", "ffn_dim", "layer_index")):
    """The feed-forward part of one layer; sizes come from the model."""

    bias: bool = False


class SwiGLU(MLP["forgather_dsl.models.mlp.SwiGLU"]):
    """Gated SiLU (https://arxiv.org/abs/2002.05202): three matrices."""


class GELUMLP(MLP["forgather_dsl.models.mlp.GELUMLP"]):
    """Two matrices with GELU between them."""


class ReLUSquaredMLP(MLP["forgather_dsl.models.mlp.ReLUSquaredMLP"]):
    """Two matrices with squared ReLU between them (https://arxiv.org/abs/2109.08668)."""


class Init(Lazy[T], abstract=True):
    """How parameters begin; values depend on the seed and the parameter's name alone."""


class NormalInit(Init["forgather_dsl.models.init.NormalInit"]):
    """Normal weights, zero biases, unit norms."""

    std: float = attrs.field(default=0.02, validator=positive)
    depth_scaled: bool = False  # divide what writes to the residual stream by sqrt(2 * num_layers) (GPT-2)


class Model(Lazy[T], abstract=True):
    """A decoder that exposes `embed`, `layers`, `norm` and `head`, or `models.parts` knows them, so that it can be cut into stages."""

    vocab_size: int = attrs.field(default=REQUIRED, validator=at_least(1, LARGEST_SIZE))
    dim: int = attrs.field(default=REQUIRED, validator=at_least(1, LARGEST_SIZE))
    num_layers: int = attrs.field(default=REQUIRED, validator=at_least(1, 1000))  # layers are planned one by one


def _as_many_as_heads(self: Any) -> int:
    return self.num_heads


def _width_of_a_head(self: Any) -> int:
    return self.dim // self.num_heads


def _gated_width(self: Any) -> int:
    """8/3 of the width, so that a gated MLP has the parameters of a plain one, rounded up for the hardware."""
    multiple = 256 if self.dim >= 1024 else 64
    return -(-8 * self.dim // 3 // multiple) * multiple


class Llama(Model["forgather_dsl.models.llama.Llama"]):
    """The Llama family: Llama 2 and 3, Mistral, Qwen 2 and 3 by options; parameter names as in transformers."""

    num_heads: int = attrs.field(default=REQUIRED, validator=at_least(1, 2**16))
    norm: Factory[Norm] = RMSNorm()
    attention: Factory[Attention] = GroupedQueryAttention()
    mlp: Factory[MLP] = SwiGLU()
    rope: Factory[PositionCode] = Rope()
    tie_embeddings: bool = False
    dropout: float = attrs.field(default=0.0, validator=fraction)  # of what each block adds to the residual stream
    init: Init = NormalInit()

    num_kv_heads: int = derived(_as_many_as_heads)
    head_dim: int = derived(_width_of_a_head)
    ffn_dim: int = derived(_gated_width)

    def __check__(self) -> Any:
        sizes = {"num_kv_heads": 2**16, "head_dim": 2**14, "ffn_dim": LARGEST_SIZE}
        wrong = {name: most for name, most in sizes.items() if not 1 <= getattr(self, name) <= most}
        if wrong:
            yield from ((name, f"{getattr(self, name)} is no size; write 1 to {most}") for name, most in wrong.items())
            return
        if self.num_heads % self.num_kv_heads:
            yield "num_kv_heads", f"{self.num_heads} heads cannot share {self.num_kv_heads} key/value heads evenly"
        if self.head_dim * self.num_heads != self.dim and "head_dim" not in vars(self)["__given__"]:
            yield "num_heads", f"dim {self.dim} is not divisible by {self.num_heads} heads; change one, or set head_dim"
        if self.head_dim % 2 and not isinstance(self.rope, NoRope):
            yield "head_dim", f"{self.head_dim} is odd; rotary embeddings turn pairs, so make it even"
