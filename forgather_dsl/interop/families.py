"""config.json of transformers and our `Llama`, one from the other: Llama, Mistral, Qwen 2 and Qwen 3, or refused.

In: a model spec, or a configuration as JSON. Out: the other one, exactly, or every reason why there is none. No torch.
What only matters in training (dropout, first weights) has no place in config.json and is not compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..dsl import ConfigError, check, diff
from ..errors import UserError
from ..specs.model import GroupedQueryAttention, Llama, Llama3Rope, NormalInit, RMSNorm, Rope, SlidingWindow, SwiGLU

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
SIZES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
}
STRETCH = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_position": "original_max_position_embeddings",
}


def is_plainly(part: Any, kind: type) -> bool:
    """Whether a part builds what `kind` of this package builds, and nothing of its own."""
    return (
        isinstance(part, kind)
        and type(part).__target__ == kind.__target__  # type: ignore[attr-defined]
        and not any(hasattr(type(part), hook) for hook in ("__build__", "__call_of__", "__choose__"))
    )


def to_config(model: Any, max_position: int) -> dict[str, Any]:
    """config.json of the stock class whose logits are those of `model`.

    Args:
        max_position: tokens that it was trained on at once.

    Raises:
        UserError: with every reason why no stock class computes the same.
    """
    if not is_plainly(model, Llama):
        raise UserError(
            f"{type(model).__name__} is no model of a family that transformers has; only Llama can be written"
        )
    reasons = list(_not_stock(model))
    if reasons:
        raise UserError("no stock class of transformers computes this model:\n  " + "\n  ".join(reasons))
    rope, family = model.rope, family_of(model)
    config: dict[str, Any] = {"model_type": family, "architectures": [CLASSES[family]]}
    config |= {theirs: getattr(model, ours) for ours, theirs in SIZES.items()}
    config |= {
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": model.norm.eps,
        "tie_word_embeddings": model.tie_embeddings,
        "attention_dropout": model.attention.dropout,
        "initializer_range": model.init.std if isinstance(model.init, NormalInit) else NormalInit().std,
        "rope_theta": rope.theta,
        "rope_scaling": None,
        "max_position_embeddings": max_position,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    if isinstance(rope, Llama3Rope):
        config["rope_scaling"] = {"rope_type": "llama3", **{hf: getattr(rope, ours) for ours, hf in STRETCH.items()}}
        config["max_position_embeddings"] = max(max_position, int(rope.factor * rope.original_max_position))
    return config | _of_family(model, family)


def _of_family(model: Any, family: str) -> dict[str, Any]:
    """What not every family has."""
    config: dict[str, Any] = {}
    attention = model.attention
    window = attention.window if isinstance(attention, SlidingWindow) else None
    if family in ("llama", "qwen3"):
        config["attention_bias"] = attention.bias
    if family == "llama":
        config["mlp_bias"] = model.mlp.bias
    if family == "mistral":
        config["sliding_window"] = window
    if family in ("qwen2", "qwen3"):
        config |= {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": 0}
        if window is None:
            config["max_window_layers"] = model.num_layers
    return config


def family_of(model: Any) -> str:
    """Which stock class has these options; `_not_stock` says whether one has."""
    attention = model.attention
    if attention.qk_norm is not None:
        return "qwen3"
    if attention.bias and not attention.output_bias:
        return "qwen2"
    return "mistral" if isinstance(attention, SlidingWindow) else "llama"


def _not_stock(model: Any) -> Iterator[str]:
    """Every option that no stock class has."""
    norm, attention, mlp, rope = model.norm, model.attention, model.mlp, model.rope
    if not is_plainly(norm, RMSNorm):
        yield f"norm = {norm!r}: stock models have RMSNorm"
    if not is_plainly(mlp, SwiGLU):
        yield f"mlp = {mlp!r}: stock models have SwiGLU"
    if not (is_plainly(rope, Rope) or is_plainly(rope, Llama3Rope)):
        yield f"rope = {rope!r}: stock models have Rope or Llama3Rope"
    if not (is_plainly(attention, GroupedQueryAttention) or is_plainly(attention, SlidingWindow)):
        yield f"attention = {attention!r}: stock models have GroupedQueryAttention or SlidingWindow, the same in all layers"
        return
    bias, out, qk_norm = attention.bias, attention.output_bias, attention.qk_norm
    if out and not bias:
        yield "attention.output_bias without attention.bias: no stock class has it"
    if qk_norm is not None:
        if not is_plainly(qk_norm, RMSNorm) or not is_plainly(norm, RMSNorm) or qk_norm.eps != norm.eps:
            yield f"attention.qk_norm = {qk_norm!r}: Qwen 3 has an RMSNorm with the eps of the other norms there"
        if bias != out:
            yield "attention.qk_norm and attention.bias: Qwen 3 has output_bias as well"
    if isinstance(attention, SlidingWindow) and qk_norm is None and out:
        yield "attention = SlidingWindow(output_bias=True): Mistral has no biases, Qwen 2 none of the output"
    plain = qk_norm is None and bias == out and not isinstance(attention, SlidingWindow)
    if is_plainly(mlp, SwiGLU) and mlp.bias and not plain:
        yield "mlp.bias: of the stock classes only Llama's has it"


def from_config(config: Mapping[str, Any], where: str = "config.json") -> Any:
    """The `Llama` that computes what the stock class makes of this configuration.

    Raises:
        UserError: with every reason why there is none.
    """
    family = config.get("model_type")
    if family not in CLASSES:
        raise UserError(f"{where}: model_type {family!r} is not known; known are {', '.join(CLASSES)}")
    read = _Reading(config, str(family))
    fields = read.fields()
    if read.reasons:
        raise UserError(
            f"{where} describes a model that this version does not compute:\n  " + "\n  ".join(read.reasons)
        )
    try:
        found = Llama(**fields)
        check(found)
    except ConfigError as error:
        raise UserError("\n".join(f"{where}: {problem}" for problem in error.problems)) from error
    return found


class _Reading:
    """One configuration, read field by field; what cannot be had is collected in `reasons`."""

    def __init__(self, config: Mapping[str, Any], family: str) -> None:
        self.config, self.family = config, family
        self.reasons: list[str] = []

    def fields(self) -> dict[str, Any]:
        """Fields of `Llama`."""
        config, llama = self.config, self.family == "llama"
        sizes = {ours: self.whole(theirs) for ours, theirs in SIZES.items()}
        kv_heads = self.whole("num_key_value_heads", sizes["num_heads"] if llama else None)
        divided = sizes["dim"] // max(1, sizes["num_heads"])
        head_dim = self.whole("head_dim", 128 if self.family == "qwen3" else divided)
        eps = self.number("rms_norm_eps", 1e-6)
        if config.get("hidden_act", "silu") != "silu":
            self.reasons.append(f"hidden_act {config['hidden_act']!r}: only silu is known")
        for key, why in (("quantization_config", "weights are quantised"), ("auto_map", "it asks for code of its own")):
            if config.get(key) is not None:
                self.reasons.append(f"{key}: {why}; take the original weights of a stock class")
        if config.get("partial_rotary_factor") not in (None, 1, 1.0):
            self.reasons.append("partial_rotary_factor: only a whole head is rotated here")
        return {
            **sizes,
            "num_kv_heads": kv_heads,
            "head_dim": head_dim,
            "norm": RMSNorm(eps=eps),
            "attention": self.attention(eps),
            "mlp": SwiGLU(bias=llama and self.flag("mlp_bias")),
            "rope": self.rope(),
            "tie_embeddings": self.flag("tie_word_embeddings"),
        }

    def attention(self, eps: float) -> Any:
        """Of every layer."""
        both = self.family in ("llama", "qwen3") and self.flag("attention_bias")
        options: dict[str, Any] = {"bias": both or self.family == "qwen2", "output_bias": both}
        if self.family == "qwen3":
            options["qk_norm"] = RMSNorm(eps=eps)
        window = self.window()
        return GroupedQueryAttention(**options) if window is None else SlidingWindow(window=window, **options)

    def window(self) -> int | None:
        """Tokens that each one sees; None for all before it."""
        config = self.config
        if self.family == "llama" or ("sliding_window" in config and config["sliding_window"] is None):
            return None
        if self.family == "mistral":
            return self.whole("sliding_window", 4096)
        if not self.flag("use_sliding_window"):
            return None
        layers, kinds = config.get("num_hidden_layers"), config.get("layer_types")
        if not isinstance(kinds, list) and isinstance(layers, int):
            first = self.whole("max_window_layers", 28)  # the first layer with a window
            kinds = ["sliding_attention"] if first <= 0 else ["full_attention"] * (1 if first >= layers else 0)
        if kinds in ([], None) or any(kind != kinds[0] for kind in kinds):
            self.reasons.append("layer_types, max_window_layers: some layers have a window and others not")
            return None
        return self.whole("sliding_window", 4096) if kinds[0] == "sliding_attention" else None

    def rope(self) -> Any:
        """Both spellings: rope_theta with rope_scaling, and rope_parameters of transformers 5."""
        given = self.config.get("rope_parameters") or self.config.get("rope_scaling") or {}
        if not isinstance(given, Mapping):
            self.reasons.append("rope_parameters: not a JSON object")
            return Rope()
        kind = given.get("rope_type", given.get("type", "default"))
        theta = self.number("rope_theta", 10_000.0, given if "rope_theta" in given else self.config)
        if given.get("partial_rotary_factor") not in (None, 1, 1.0):
            self.reasons.append("rope_parameters.partial_rotary_factor: only a whole head is rotated here")
        if kind == "default":
            return Rope(theta=theta) if theta > 0 else Rope()
        if kind != "llama3":
            self.reasons.append(f"rope_scaling of type {kind!r}: only 'default' and 'llama3' are known")
            return Rope()
        stretch: dict[str, Any] = {ours: self.number(theirs, None, given) for ours, theirs in STRETCH.items()}
        stretch["original_max_position"] = int(stretch["original_max_position"])
        return Llama3Rope(theta=theta, **stretch) if min(theta, *stretch.values()) > 0 else Rope()

    def whole(self, key: str, default: int | None = None) -> int:
        """A whole number above 0 (of `max_window_layers`, 0 too)."""
        value = self.config.get(key)
        value = default if value is None else value
        least = 0 if key == "max_window_layers" else 1
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.reasons.append(f"{key} is missing" if value is None else f"{key} = {value!r}: not a whole number above 0")
        return 1

    def number(self, key: str, default: float | None, source: Mapping[str, Any] | None = None) -> float:
        """A number above 0."""
        value = (self.config if source is None else source).get(key)
        value = default if value is None else value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1e300:
            return float(value)
        self.reasons.append(f"{key} is missing" if value is None else f"{key} = {value!r}: not a number above 0")
        return 1.0

    def flag(self, key: str) -> bool:
        """True or false; false where nothing is said."""
        value = self.config.get(key)
        if value not in (None, True, False):
            self.reasons.append(f"{key} = {value!r}: neither true nor false")
        return bool(value)


def differences(found: Any, model: Any) -> list[str]:
    """Every field in which the model of a configuration and that of an experiment differ, with both values.

    Raises:
        UserError: no configuration could describe the experiment's model.
    """
    same = from_config(to_config(model, 1))  # in the package's own classes, without what only matters in training
    return [
        f"model.{change.path}: config.json says {change.left or 'nothing'}, the experiment {change.right or 'nothing'}"
        for change in diff(found, same)
    ]
