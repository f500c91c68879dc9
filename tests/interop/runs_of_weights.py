"""Runs whose checkpoints hold known weights, for tests of what leaves and enters: models, weights, logits, folders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from forgather_dsl import (
    FP32,
    Bytes,
    Experiment,
    GroupedQueryAttention,
    Llama,
    Llama3Rope,
    RMSNorm,
    Rope,
    SlidingWindow,
    SwiGLU,
    TextFiles,
)
from forgather_dsl.dsl import build
from forgather_dsl.interop.families import to_config
from forgather_dsl.models.init import tie_weights
from forgather_dsl.train import directory
from forgather_dsl.train.checkpoint.snapshot import source
from forgather_dsl.train.weights import save_weights

SEQ = 24
STRETCHED = Llama3Rope(theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
SIZES: dict[str, Any] = {
    "dim": 48,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 2,
    "ffn_dim": 80,
    "vocab_size": 263,
}
MODELS = {
    "llama": Llama(**SIZES),
    "llama-biases": Llama(
        **SIZES, attention=GroupedQueryAttention(bias=True, output_bias=True), mlp=SwiGLU(bias=True), head_dim=10
    ),
    "llama3-tied": Llama(**SIZES, rope=STRETCHED, tie_embeddings=True, norm=RMSNorm(eps=1e-3)),
    "mistral": Llama(**SIZES, attention=SlidingWindow(window=7), rope=Rope(theta=500.0)),
    "qwen2-tied": Llama(**SIZES, attention=GroupedQueryAttention(bias=True), tie_embeddings=True),
    "qwen2-window": Llama(**SIZES, attention=SlidingWindow(bias=True, window=7)),
    "qwen3": Llama(**SIZES, attention=GroupedQueryAttention(qk_norm=RMSNorm()), head_dim=10),
    "qwen3-window-tied": Llama(
        **SIZES,
        attention=SlidingWindow(qk_norm=RMSNorm(), window=7, bias=True, output_bias=True),
        head_dim=10,
        tie_embeddings=True,
    ),
}


class Tiny(Experiment):
    seq_len = SEQ
    batch_size = 4
    steps = 2
    sampling = None
    loggers = ()
    eval_data = None
    tokenizer = Bytes()
    precision = FP32()


def experiment(model: Any, corpus: Path) -> Any:
    return Tiny(model=model, data=TextFiles(paths=(str(corpus),), held_out=0.0))


def random_weights(model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    with torch.device("meta"):
        built: Any = build(model)
    shapes = {name: parameter.shape for name, parameter in built.named_parameters()}
    return {n: torch.randn(s) * 0.1 + (1.0 if len(s) == 1 else 0.0) for n, s in shapes.items()}


def logits(model: Any, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Of our model."""
    with torch.device("meta"):
        built: Any = build(model)
    built.to_empty(device="cpu")
    tie_weights(built)
    left = built.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= ({"lm_head.weight"} if model.tie_embeddings else set())
    with torch.no_grad():
        return built.eval()(tokens)


def make_run(path: Path, model: Any, corpus: Path, weights: dict[str, torch.Tensor]) -> str:
    """A run directory with one checkpoint of these weights."""
    directory.write(experiment(model, corpus), str(path), "tiny.py:Tiny", [])
    return save_weights(str(path / "checkpoints"), [source(name, tensor) for name, tensor in weights.items()])


def tokens() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, SEQ), generator=torch.Generator().manual_seed(3))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.std() > 0.3, "logits too small to tell anything"
    return (a - b).abs().max().item()


def left(folder: Path) -> list[str]:
    """What a refusal may leave: nothing of its own, hidden files included."""
    return sorted(name for name in os.listdir(folder) if name != "__pycache__")  # of the experiment's file


def write_hf(folder: Path, model: Any, **changes: torch.Tensor | None) -> str:
    """A folder as transformers writes them, its tensors changed or left out."""
    (folder / "hf").mkdir()
    tensors = {n: t for n, t in {**random_weights(model), **changes}.items() if t is not None}
    save_file(tensors, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    (folder / "hf" / "config.json").write_text(json.dumps(to_config(model, 64)))
    return str(folder / "hf")


def write_corpus(folder: Path) -> Path:
    """A folder with a text, which has to be new."""
    folder.mkdir()
    (folder / "text.txt").write_text("a line of text to learn from\n" * 200)
    return folder
