"""Models that nobody here wrote: torch's own, with their source taken in; and those of transformers, which stays an import."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from codegen import Check, CodegenError, Report, trace, verify_many

DRAW = torch.Generator().manual_seed(4)


def floats(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=DRAW)


def tokens(below: int = 64) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, below, (2, 9), generator=DRAW)}


@dataclass
class Foreign:
    """A model, what it takes, and which code goes into the file."""

    build: Callable[[], nn.Module]
    inputs: Any
    inline: tuple[str, ...]
    allow: tuple[str, ...] = ()
    has: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    refused: tuple[str, ...] = field(default=())


def layer(**options: Any) -> nn.TransformerEncoderLayer:
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)


TRANSFORMER, ACTIVATION = "torch.nn.modules.transformer", "torch.nn.modules.activation"
OF_TORCH = {
    "nn.Transformer": Foreign(
        lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
        (floats(2, 5, 16), floats(2, 4, 16)),
        (TRANSFORMER,),
        has=("class TransformerDecoderLayer", "MultiheadAttention"),
        lacks=("class MultiheadAttention",),
    ),
    "nn.Transformer with its attention": Foreign(
        lambda: nn.Transformer(16, 2, 1, 1, 32, batch_first=True),
        (floats(2, 5, 16), floats(2, 4, 16)),
        (TRANSFORMER, ACTIVATION),
        has=("class MultiheadAttention",),
    ),
    "nn.TransformerEncoder": Foreign(
        lambda: nn.TransformerEncoder(layer(norm_first=True, activation="gelu"), 2, enable_nested_tensor=False),
        (floats(2, 5, 16),),
        (TRANSFORMER,),
        lacks=("class TransformerDecoder",),
    ),
    "nn.MultiheadAttention": Foreign(
        lambda: nn.MultiheadAttention(16, 2, batch_first=True), (floats(2, 5, 16),) * 3, (ACTIVATION,)
    ),
    "nn.BatchNorm2d": Foreign(lambda: nn.BatchNorm2d(3), (floats(2, 3, 4, 4),), ("torch.nn.modules.batchnorm",)),
    "nn.Conv2d": Foreign(lambda: nn.Conv2d(3, 4, 3, padding=1), (floats(2, 3, 4, 4),), ("torch.nn.modules.conv",)),
    "nn.LSTM": Foreign(
        lambda: nn.LSTM(8, 8, 2),
        (floats(2, 5, 8),),
        ("torch.nn.modules.rnn",),
        refused=("LSTM was called with \\*args", "rnn.py:\\d+: setattr with a computed name"),
    ),
}


def of(family: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    """Builds a small model of transformers."""

    def build() -> nn.Module:
        modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        configuration = importlib.import_module(f"transformers.models.{family}.configuration_{family}")
        config = next(cls for name, cls in vars(configuration).items() if name.lower() == f"{family}config")
        return getattr(modeling, model)(config(**options))

    return build


SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
DECODER = SIZES | {"vocab_size": 64, "num_key_value_heads": 2, "max_position_embeddings": 64}


def causal(family: str, model: str, **more: Any) -> Foreign:
    modeling = f"transformers.models.{family}.modeling_{family}"
    return Foreign(
        of(family, model, **DECODER, **more), tokens(), (modeling,), ("transformers",), has=("PreTrainedModel",)
    )


OF_TRANSFORMERS = {
    "LlamaForCausalLM": causal("llama", "LlamaForCausalLM"),
    "MistralForCausalLM": causal("mistral", "MistralForCausalLM"),
    "Qwen3ForCausalLM": causal("qwen3", "Qwen3ForCausalLM", head_dim=8),
    "Gemma2ForCausalLM": causal("gemma2", "Gemma2ForCausalLM", head_dim=8),
    "BertModel": Foreign(
        of("bert", "BertModel", **SIZES, vocab_size=64),
        tokens(),
        ("transformers.models.bert.modeling_bert",),
        ("transformers",),
    ),
    "ViTModel": Foreign(
        of("vit", "ViTModel", **SIZES, image_size=16, patch_size=8),
        (floats(2, 3, 16, 16),),
        ("transformers.models.vit.modeling_vit",),
        ("transformers",),
    ),
    "LlamaForCausalLM without leave to import": Foreign(
        of("llama", "LlamaForCausalLM", **DECODER),
        tokens(),
        ("transformers.models.llama.modeling_llama",),
        refused=("the code needs 'transformers", "to allow= \\(it stays a requirement\\)"),
    ),
}


def checked(models: dict[str, Foreign]) -> dict[str, Report | CodegenError]:
    found: dict[str, Report | CodegenError] = {}
    checks: dict[str, Check] = {}
    for name, model in models.items():
        torch.manual_seed(2)
        built = model.build()
        try:
            source = trace(built, model.build, inline=model.inline, allow=model.allow)
        except CodegenError as error:
            found[name] = error
            continue
        assert [text for text in model.has if text not in source.text] == []
        assert [text for text in model.lacks if text in source.text] == []
        assert source.requirements == model.allow
        checks[name] = Check(source, built, model.build, model.inputs)
    return found | dict(zip(checks, verify_many(checks.values(), timeout=900)))


def require(models: dict[str, Foreign], results: dict[str, Report | CodegenError]) -> None:
    wrong = {}
    for name, model in models.items():
        result = results[name]
        if model.refused:
            assert isinstance(result, CodegenError), name
            for words in model.refused:
                assert re.search(words, str(result)), str(result)
        elif isinstance(result, CodegenError):
            wrong[name] = str(result)
        else:
            assert result.compared["train gradient"] > 1
    assert wrong == {}


@pytest.mark.slow
def test_models_of_torch():
    require(OF_TORCH, checked(OF_TORCH))


@pytest.mark.slow
def test_models_of_transformers():
    require(OF_TRANSFORMERS, checked(OF_TRANSFORMERS))
