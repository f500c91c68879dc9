"""`export --to gguf`: one file for llama.cpp, through the package `gguf`: Llama, Mistral (as Llama), Qwen 2 and Qwen 3.

Names come from gguf's own table. llama.cpp turns neighbouring numbers of a head for Llama, and the two halves for Qwen: so rows
of Llama's queries and keys change places. Norms and biases are float32, which llama.cpp wants of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.tokenizers import Tokenizer
from ..dsl import build
from ..errors import UserError
from ..models.rope import Rope
from ..specs import Llama3Rope, SlidingWindow
from .families import family_of, to_config
from .gguf_words import add_vocabulary, split_name
from .outgoing import Outgoing

__all__ = ["require_gguf", "write_gguf"]

ARCHITECTURES = {"llama": "LLAMA", "mistral": "LLAMA", "qwen2": "QWEN2", "qwen3": "QWEN3"}
FREQUENCIES = "rope_freqs.weight"
CONVERTER = "python convert_hf_to_gguf.py {hf} --outfile {out}"  # of llama.cpp


class _Entry(NamedTuple):
    """A tensor of the file: what it is called there, and which of ours it is."""

    name: str
    ours: str
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it


def require_gguf(weights: Outgoing, tokenizer: Tokenizer | None, source: str) -> None:
    """Raises UserError: the package is missing, or llama.cpp has no such model or tokenizer; with what to do instead."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise UserError(
            "--to gguf needs the package gguf: pip install 'forgather_dsl[gguf]' (or: pip install gguf)"
        ) from error
    by_llama_cpp = (
        f"export {source} --to hf --out HF_DIR, then of llama.cpp: {CONVERTER.format(hf='HF_DIR', out='model.gguf')}"
    )
    model = weights.model
    to_config(model, weights.experiment.seq_len)
    family, reasons = family_of(model), []
    if family == "qwen3" and model.attention.bias:
        reasons.append("attention.bias: llama.cpp's Qwen 3 has none")
    if isinstance(model.rope, Llama3Rope) and ARCHITECTURES[family] != "LLAMA":
        reasons.append("rope = Llama3Rope: llama.cpp has it for Llama alone")
    if reasons:
        raise UserError("llama.cpp does not compute this model:\n  " + "\n  ".join(reasons))
    if tokenizer is not None:
        try:
            split_name(tokenizer)
        except UserError as error:
            raise UserError(f"{error}; write --no-tokenizer for a file of weights alone, or {by_llama_cpp}") from error


def write_gguf(weights: Outgoing, into: str, name: str, proof: bool, tokenizer: Tokenizer | None) -> list[str]:
    """Write `model.gguf` into a folder, and read it back; returns lines for the user. After `require_gguf`."""
    import gguf

    model = weights.model
    family = family_of(model)
    arch = getattr(gguf.MODEL_ARCH, ARCHITECTURES[family])
    writer = gguf.GGUFWriter(None, gguf.MODEL_ARCH_NAMES[arch])
    entries = _entries(weights, gguf.get_tensor_name_map(arch, model.num_layers))
    context = _context(weights)
    _add_metadata(gguf, writer, weights, name, context, entries)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        add_vocabulary(writer, tokenizer, weights.experiment)
    path = os.path.join(into, "model.gguf")
    _write(gguf, writer, path, weights, entries, family)
    if proof:
        _read_back(gguf, path, weights, entries, family)
    seen = "read back with gguf, every tensor bit for bit" if proof else "not read back (--no-proof)"
    lines = [f"{gguf.MODEL_ARCH_NAMES[arch]}, context of {context}; {seen}; llama.cpp itself was not run"]
    if context < weights.experiment.seq_len:
        lines.append(f"llama.cpp knows no window of {context}: the context ends where it would begin to matter")
    if tokenizer is None:
        lines.append("no tokenizer: llama.cpp takes ids, not text")
    return lines


def _context(weights: Outgoing) -> int:
    """The longest text for which llama.cpp computes the same: it sees all tokens before each."""
    model = weights.model
    longest = int(to_config(model, weights.experiment.seq_len)["max_position_embeddings"])
    return min(longest, model.attention.window) if isinstance(model.attention, SlidingWindow) else longest


def _entries(weights: Outgoing, names: Any) -> list[_Entry]:
    """In the order of the file."""
    found = []
    model = weights.model
    if isinstance(model.rope, Llama3Rope):
        found.append(_Entry(FREQUENCIES, "", (model.head_dim // 2,), "F32"))
    for ours, entry in weights.stored.items():
        name = names.get_name(ours, try_suffixes=(".weight", ".bias"))
        assert name is not None, ours
        found.append(_Entry(name, ours, entry.shape, "F32" if len(entry.shape) == 1 else entry.dtype))
    return found


def _add_metadata(gguf: Any, writer: Any, weights: Outgoing, name: str, context: int, entries: list[_Entry]) -> None:
    model = weights.model
    wide = {entry.dtype for entry in entries if len(entry.shape) > 1}
    types = {"F32": gguf.LlamaFileType.ALL_F32, "F16": gguf.LlamaFileType.MOSTLY_F16}
    types["BF16"] = gguf.LlamaFileType.MOSTLY_BF16
    writer.add_type("model")
    writer.add_name(name)
    writer.add_vocab_size(model.vocab_size)
    writer.add_context_length(context)
    writer.add_embedding_length(model.dim)
    writer.add_feed_forward_length(model.ffn_dim)
    writer.add_block_count(model.num_layers)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope.theta)
    writer.add_layer_norm_rms_eps(model.norm.eps)
    writer.add_file_type(types[wide.pop()] if len(wide) == 1 else types["F32"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _write(gguf: Any, writer: Any, path: str, weights: Outgoing, entries: list[_Entry], family: str) -> None:
    """Header first, then one tensor at a time."""
    import numpy as np

    kinds = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(np.int16)}
    for entry in entries:
        size = math.prod(entry.shape) * (4 if entry.dtype == "F32" else 2)
        raw = gguf.GGMLQuantizationType[entry.dtype]
        writer.add_tensor_info(entry.name, list(entry.shape), kinds[entry.dtype], size, raw_dtype=raw)
    writer.write_header_to_file(path)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for entry, tensor in zip(entries, _tensors(weights, entries, family)):
        writer.write_tensor_data(_as_stored(entry, tensor).numpy())
    writer.close()


def _as_stored(entry: _Entry, tensor: Tensor) -> Tensor:
    """In its format; bfloat16, which numpy lacks, as whole numbers of the same bits."""
    wanted = (tensor.float() if entry.dtype == "F32" else tensor).contiguous()
    return wanted.view(torch.int16) if entry.dtype == "BF16" else wanted


def _read_back(gguf: Any, path: str, weights: Outgoing, entries: list[_Entry], family: str) -> None:
    """Raises UserError: gguf's own reader does not find every tensor, bit for bit."""
    import numpy as np

    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    wrong = sorted({entry.name for entry in entries} ^ set(found))
    for entry, tensor in zip(entries, _tensors(weights, entries, family)):
        if entry.name in found:
            there = torch.from_numpy(np.array(found[entry.name].data)).reshape(-1).view(torch.uint8)
            if not torch.equal(there, _as_stored(entry, tensor).reshape(-1).view(torch.uint8)):
                wrong.append(entry.name)
    if wrong:
        raise UserError(f"what was written is not what gguf reads: {', '.join(wrong[:5])}")


def _tensors(weights: Outgoing, entries: list[_Entry], family: str) -> Iterator[Tensor]:
    model = weights.model
    heads = {"q_proj": model.num_heads, "k_proj": model.num_kv_heads}
    for entry in entries:
        if not entry.ours:
            yield _stretches(model)
            continue
        _, tensor = next(weights.tensors([entry.ours]))
        part = entry.ours.split(".")[-2]
        yield by_neighbours(tensor, heads[part]) if part in heads and ARCHITECTURES[family] == "LLAMA" else tensor


def by_neighbours(tensor: Tensor, heads: int) -> Tensor:
    """Rows of a projection whose rotation turns rows i and i + half of a head, for one that turns rows 2i and 2i + 1."""
    half = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _stretches(model: Any) -> Tensor:
    """By how much each frequency of a rotation is divided, float32 [head_dim / 2]."""
    rope = build(model.rope, head_dim=model.head_dim)
    return Rope.frequencies(rope, "cpu") / rope.frequencies("cpu")
