"""GGUF: every tensor and key is read back by gguf's own reader, and transformers' reader of GGUF computes our logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hf_folders import write_model, write_tokenizer
from runs_of_weights import MODELS, largest_difference, left, logits, make_run, random_weights, tokens, write_corpus

from forgather_dsl import GroupedQueryAttention, Llama, Llama3Rope, RMSNorm, SwiGLU
from forgather_dsl.dsl import build
from forgather_dsl.errors import UserError
from forgather_dsl.interop.export import export
from forgather_dsl.interop.gguf_file import by_neighbours
from forgather_dsl.interop.gguf_words import PATTERNS
from forgather_dsl.interop.incoming import Vocabulary, import_folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


KNOWN = ["llama", "llama-biases", "llama3-tied", "mistral", "qwen2-tied", "qwen3"]
OURS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
IN_LAYERS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def our_name(name: str) -> str:
    """What llama.cpp's name stands for, written down here once more."""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{OURS[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{IN_LAYERS[part]}.{kind}"


def values(tensor: Any) -> torch.Tensor:
    """Of a tensor that gguf's reader found."""
    kind, data = tensor.tensor_type, np.array(tensor.data)
    if kind == gguf.GGMLQuantizationType.BF16:
        shape = tuple(reversed(tensor.shape.tolist()))
        return torch.from_numpy(data.copy()).reshape(-1).view(torch.bfloat16).reshape(shape)
    return torch.from_numpy(data)


def fields(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
@pytest.mark.parametrize("name", KNOWN)
def test_every_tensor_and_key_comes_back(name: str, dtype: str | None, tmp_path: Path, corpus: Path) -> None:
    model = MODELS[name]
    weights = random_weights(model)
    make_run(tmp_path / "run", model, corpus, weights)
    export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"), dtype=dtype, tokenizer=False)
    reader = gguf.GGUFReader(tmp_path / "out" / "model.gguf")
    found = {tensor.name: tensor for tensor in reader.tensors}
    stretches = found.pop("rope_freqs.weight", None)
    assert {our_name(n) for n in found} == set(weights)
    arch = "llama" if name.startswith(("llama", "mistral")) else name[:5]
    heads = {"attn_q": model.num_heads, "attn_k": model.num_kv_heads} if arch == "llama" else {}
    for key, tensor in found.items():
        expected = weights[our_name(key)]
        narrow = torch.float32 if dtype is None or expected.dim() == 1 else getattr(torch, dtype)
        if (part := key.split(".")[-2]) in heads:
            expected = by_neighbours(expected, heads[part])
        value = values(tensor)
        assert value.dtype == narrow
        if expected.dim() == 1 and dtype is not None:
            expected = expected.to(getattr(torch, dtype)).float()
        assert torch.equal(value, expected.to(narrow)), key
    keys = fields(reader)
    assert keys["general.architecture"] == arch
    wanted = {
        "block_count": 3, "embedding_length": 48, "feed_forward_length": 80, "vocab_size": 263, "context_length": 24,
        "attention.head_count": 6, "attention.head_count_kv": 2, "attention.key_length": model.head_dim,
        "attention.value_length": model.head_dim, "rope.dimension_count": model.head_dim,
        "rope.freq_base": model.rope.theta, "attention.layer_norm_rms_epsilon": pytest.approx(model.norm.eps),
    }  # fmt: skip
    if name == "mistral":
        wanted["context_length"] = 7  # its window: llama.cpp has none
    if name == "llama3-tied":
        wanted["context_length"] = 128
    assert {key: keys[f"{arch}.{key}"] for key in wanted} == wanted
    assert keys["general.file_type"] == {None: 0, "float16": 1, "bfloat16": 32}[dtype]
    assert keys["tokenizer.ggml.model"] == "none"
    if stretches is not None:
        rope = build(model.rope, head_dim=model.head_dim)
        plain = 1.0 / model.rope.theta ** (torch.arange(0, model.head_dim, 2) / model.head_dim)
        assert torch.allclose(plain / values(stretches), rope.frequencies("cpu"), rtol=1e-6)
    assert (stretches is not None) == (name == "llama3-tied")


def as_llama_cpp(path: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits from the file alone, the way llama.cpp computes them: a small one of our own, as llama.cpp is not here."""
    reader = gguf.GGUFReader(path)
    keys, t = fields(reader), {tensor.name: values(tensor).float() for tensor in reader.tensors}
    arch = keys["general.architecture"]
    heads, groups, size = (keys[f"{arch}.attention.{k}"] for k in ("head_count", "head_count_kv", "key_length"))
    turns = torch.arange(0, size, 2) / size
    turns = keys[f"{arch}.rope.freq_base"] ** -turns / t.get("rope_freqs.weight", torch.ones(size // 2))
    angles = torch.outer(torch.arange(ids.shape[1]).float(), turns)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]

    def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (
            x * torch.rsqrt((x * x).mean(-1, keepdim=True) + keys[f"{arch}.attention.layer_norm_rms_epsilon"]) * weight
        )

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", torch.zeros(1))

    def turn(x: torch.Tensor) -> torch.Tensor:
        if arch == "llama":  # neighbours
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)

    x = t["token_embd.weight"][ids]
    batch, length = ids.shape
    unseen = torch.full((length, length), float("-inf")).triu(1)
    for layer in (f"blk.{i}." for i in range(keys[f"{arch}.block_count"])):
        y = norm(x, t[layer + "attn_norm.weight"])
        q, k, v = (linear(y, f"{layer}attn_{part}").view(batch, length, -1, size) for part in "qkv")
        if layer + "attn_q_norm.weight" in t:
            q, k = norm(q, t[layer + "attn_q_norm.weight"]), norm(k, t[layer + "attn_k_norm.weight"])
        q, k, v = (a.repeat_interleave(heads // a.shape[2], 2).transpose(1, 2) for a in (turn(q), turn(k), v))
        y = ((q @ k.mT / size**0.5 + unseen).softmax(-1) @ v).transpose(1, 2).reshape(batch, length, -1)
        x = x + linear(y, layer + "attn_output")
        y = norm(x, t[layer + "ffn_norm.weight"])
        y = torch.nn.functional.silu(linear(y, layer + "ffn_gate")) * linear(y, layer + "ffn_up")
        x = x + linear(y, layer + "ffn_down")
    assert k.shape[1] == heads
    assert groups <= heads
    return linear(norm(x, t["output_norm.weight"]), "output" if "output.weight" in t else "token_embd")


@pytest.mark.parametrize("name", KNOWN)
def test_what_llama_cpp_computes_from_the_file_are_our_logits(name: str, tmp_path: Path, corpus: Path) -> None:
    model = MODELS[name]
    weights = random_weights(model)
    make_run(tmp_path / "run", model, corpus, weights)
    export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"), tokenizer=False)
    ids = tokens()[:, : 7 if name == "mistral" else None]  # the context that the file says
    found = as_llama_cpp(tmp_path / "out" / "model.gguf", ids)
    assert largest_difference(logits(model, weights, ids), found) < 1e-5


@pytest.mark.parametrize("pattern", [None, *PATTERNS])
def test_the_vocabulary_is_that_of_the_tokenizer(pattern: str | None, tmp_path: Path) -> None:
    write_model(tmp_path / "hf", "Llama", True, vocab_size=300)
    write_tokenizer(tmp_path / "hf", vocab_size=290, pattern=pattern)
    path = tmp_path / "hf" / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["ignore_merges"] = PATTERNS.get(pattern or "") == "llama-bpe"
    path.write_text(json.dumps(content))
    import_folder(str(tmp_path / "hf"), str(tmp_path / "run"), Vocabulary(added=["<a>"], special=["<b>"]))
    export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"))
    keys = fields(gguf.GGUFReader(tmp_path / "out" / "model.gguf"))
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == ("gpt-2" if pattern is None else PATTERNS[pattern])
    names, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    vocabulary = content["model"]["vocab"]
    assert all(names[row] == name for name, row in vocabulary.items())
    assert len(names) == len(kinds) == 300
    size = len(vocabulary)
    assert (names[size], kinds[size], names[size + 1], kinds[size + 1]) == ("<a>", 4, "<b>", 3)
    assert (names[size + 2], kinds[size + 2], kinds[0], kinds[5]) == (f"[PAD{size + 2}]", 5, 3, 1)
    assert keys["tokenizer.ggml.merges"] == [" ".join(merge) for merge in content["model"]["merges"]]
    assert (keys["tokenizer.ggml.bos_token_id"], keys["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert keys["tokenizer.ggml.add_bos_token"] is False  # this tokenizer.json begins no text with <s>
    assert "message['role']" in keys["tokenizer.chat_template"]


REFUSED: dict[str, tuple[Any, str]] = {
    "biases of Qwen 3": (
        {"attention": GroupedQueryAttention(qk_norm=RMSNorm(), bias=True, output_bias=True)},
        "attention.bias: llama.cpp's Qwen 3 has none",
    ),
    "Llama 3's rotation elsewhere": (
        {"attention": GroupedQueryAttention(bias=True), "rope": Llama3Rope()},
        "rope = Llama3Rope: llama.cpp has it for Llama alone",
    ),
    "no stock class": ({"attention": GroupedQueryAttention(bias=True), "mlp": SwiGLU(bias=True)}, "no stock class"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_does_not_compute_is_refused(name: str, tmp_path: Path, corpus: Path) -> None:
    changes, said = REFUSED[name]
    model = Llama(dim=48, num_layers=2, num_heads=6, num_kv_heads=2, ffn_dim=80, vocab_size=263, **changes)
    make_run(tmp_path / "run", model, corpus, random_weights(model))
    with pytest.raises(UserError) as raised:
        export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"), tokenizer=False)
    assert said in str(raised.value)
    assert left(tmp_path) == ["run"]


def test_another_tokenizer_is_refused_with_the_command_that_can(tmp_path: Path, corpus: Path) -> None:
    make_run(tmp_path / "run", MODELS["llama"], corpus, random_weights(MODELS["llama"]))
    with pytest.raises(UserError) as raised:
        export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"))
    assert "it has no merges, without which llama.cpp reads no BPE; write --no-tokenizer" in str(raised.value)
    assert "python convert_hf_to_gguf.py HF_DIR --outfile model.gguf" in str(raised.value)
    assert left(tmp_path) == ["run"]


@pytest.mark.slow
def test_without_the_package_it_says_what_to_install(tmp_path: Path, corpus: Path) -> None:
    make_run(tmp_path / "run", MODELS["llama"], corpus, random_weights(MODELS["llama"]))
    code = (
        "import sys; sys.modules['gguf'] = None\n"
        "from forgather_dsl.cli.app import run_command\n"
        "sys.exit(run_command(['export', 'run', '--to', 'gguf', '--out', 'out', '--no-tokenizer']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "pip install 'forgather_dsl[gguf]'" in done.stderr
    assert left(tmp_path) == ["run"]


def test_what_gguf_reads_otherwise_is_not_kept(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", MODELS["qwen3"], corpus, random_weights(MODELS["qwen3"]))
    written = gguf.GGUFWriter.write_tensor_data

    def spoil(self: Any, tensor: Any) -> None:
        written(self, -tensor if tensor.shape == (263, 48) else tensor)

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", spoil)
    with pytest.raises(UserError, match=r"not what gguf reads: .*token_embd.weight"):
        export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"), tokenizer=False)
    assert left(tmp_path) == ["run"]
    done = export(str(tmp_path / "run"), "gguf", str(tmp_path / "out"), tokenizer=False, proof=False)
    assert "not read back (--no-proof)" in done.said[0]
