"""Weights between our checkpoints and Hugging Face folders: the same logits, the same bits, and nothing written where it is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from forgather_dsl import (
    FP32,
    Bytes,
    Experiment,
    GELUMLP,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    Llama3Rope,
    NoRope,
    RMSNorm,
    Rope,
    SlidingWindow,
    SwiGLU,
    TextFiles,
    replace,
)
from forgather_dsl.cli.app import run_command
from forgather_dsl.dsl import Cycle, build
from forgather_dsl.errors import UserError
from forgather_dsl.interop.convert import from_folder, to_folder
from forgather_dsl.interop.families import differences, from_config, to_config
from forgather_dsl.models.init import tie_weights
from forgather_dsl.parallel.group import World
from forgather_dsl.train import checkpoint, directory
from forgather_dsl.train.agreement import Ranks

SEQ = 24
STRETCHED = Llama3Rope(theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
SIZES: dict[str, Any] = {"dim": 48, "num_layers": 3, "num_heads": 6, "num_kv_heads": 2, "ffn_dim": 80, "vocab_size": 263}
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


def alone() -> Ranks:
    return Ranks(World(0, 1, torch.device("cpu"), None), [])


def make_run(path: Path, model: Any, corpus: Path, weights: dict[str, torch.Tensor]) -> str:
    """A run directory with one checkpoint of these weights, and optimizer state beside them."""
    directory.write(experiment(model, corpus), str(path), "tiny.py:Tiny", [])
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    tensors |= {f"optimizer/{name}/exp_avg": torch.ones_like(tensor) for name, tensor in weights.items()}
    state = {"data": {}, "optimizer": "AdamW", "tokens": 1, "seconds": 1.0}
    return checkpoint.save(str(path / "checkpoints"), 10, tensors, state, {}, alone(), 2)


def tokens() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, SEQ), generator=torch.Generator().manual_seed(3))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.std() > 0.3, "logits too small to tell anything"
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("a line of text to learn from\n" * 200)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again(name: str, tmp_path: Path, corpus: Path) -> None:
    """Our model to a folder that transformers loads with our logits; back to a checkpoint with the same bits."""
    model = MODELS[name]
    weights = random_weights(model)
    make_run(tmp_path / "run", model, corpus, weights)
    to_folder(str(tmp_path / "run"), str(tmp_path / "hf"), shard_bytes=60_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="eager"
    )
    assert type(theirs).__name__.lower().startswith(name.partition("-")[0].rstrip("3") if "llama" in name else name[:5])
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert largest_difference(logits(model, weights, tokens()), theirs.eval()(tokens()).logits) < 1e-5
    back = from_folder(str(tmp_path / "hf"), experiment(model, corpus), str(tmp_path / "back"), "tiny.py:Tiny")
    assert back.tensors == len(weights)
    saved = checkpoint.newest(str(tmp_path / "back" / "checkpoints"), alone())
    assert saved is not None
    assert saved.step == 0
    found = dict(saved.tensors(saved.stored()))
    assert set(found) == {f"weights/{n}" for n in weights}
    assert all(torch.equal(found[f"weights/{n}"].view(torch.uint8), w.view(torch.uint8)) for n, w in weights.items())
    to_folder(str(tmp_path / "back"), str(tmp_path / "again"), shard_bytes=60_000)
    for file in sorted(os.listdir(tmp_path / "hf")):
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


FAMILIES = {
    "Llama": ({"attention_bias": True, "mlp_bias": True, "head_dim": 10}, False),
    "Mistral": ({"sliding_window": 7, "head_dim": 10}, True),
    "Qwen2": ({}, False),
    "Qwen3": ({"head_dim": 10}, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read(family: str, dtype: torch.dtype, tmp_path: Path, corpus: Path) -> None:
    options, tied = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=80,
        vocab_size=263, max_position_embeddings=64, tie_word_embeddings=tied, **options,
    )  # fmt: skip
    torch.manual_seed(5)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0.0, 0.1).add_(1.0 if parameter.dim() == 1 else 0.0)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    ours = from_config(json.loads((tmp_path / "hf" / "config.json").read_text()))
    from_folder(str(tmp_path / "hf"), experiment(ours, corpus), str(tmp_path / "run"), "tiny.py:Tiny")
    saved = checkpoint.newest(str(tmp_path / "run" / "checkpoints"), alone())
    assert saved is not None
    weights = {k.removeprefix("weights/"): t for k, t in saved.tensors(saved.stored())}
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == dtype for name, tensor in weights.items())
    with torch.no_grad():
        found = logits(ours, {n: w.float() for n, w in weights.items()}, tokens())
        assert largest_difference(found, theirs.float()(tokens()).logits) < 1e-4
    to_folder(str(tmp_path / "run"), str(tmp_path / "again"))
    kept = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == dtype for name, tensor in kept.items())
