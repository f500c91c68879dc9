"""The vocabulary of a GGUF file, from a tokenizer of the byte-level BPE kind, as llama.cpp reads it; other kinds are refused.

llama.cpp splits text into words with code of its own, which a file chooses by name (`tokenizer.ggml.pre`). Its converter
recognises tokenizers by a hash of ids; here it is the pattern in tokenizer.json, which is what that name stands for.
"""

from __future__ import annotations

import json
from typing import Any

from ..data.tokenizers import Tokenizer
from ..errors import UserError
from .words import begins_texts, generation_of

__all__ = ["add_vocabulary", "split_name"]

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # of a token, in llama.cpp
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERNS = {_WORDS.format(r"\p{N}{1,3}"): "llama-bpe", _WORDS.format(r"\p{N}"): "qwen2"}


def split_name(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of the way in which a tokenizer splits text into words. Raises UserError: it has none."""
    content = json.loads(tokenizer.loaded.backend.to_str())
    model, first, normalizer = content["model"], content.get("pre_tokenizer"), content.get("normalizer")
    if model.get("type") != "BPE" or model.get("byte_fallback") or not first:
        raise _no_name("it is no byte-level BPE")
    if not model.get("merges"):
        raise _no_name("it has no merges, without which llama.cpp reads no BPE")
    steps: list[dict[str, Any]] = first["pretokenizers"] if first["type"] == "Sequence" else [first]
    if [step["type"] for step in steps] == ["ByteLevel"] and steps[0].get("use_regex", True):
        name = "gpt-2"
    elif [step["type"] for step in steps] == ["Split", "ByteLevel"]:
        name = PATTERNS.get(steps[0]["pattern"].get("Regex", ""), "")
    else:
        name = ""
    if not name or steps[-1].get("add_prefix_space"):
        raise _no_name("its way to split text into words is not GPT-2's, Llama 3's or Qwen 2's")
    if normalizer is not None and not (name == "qwen2" and normalizer["type"] == "NFC"):
        raise _no_name(f"it changes text first ({normalizer['type']})")
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise _no_name("it differs from Llama 3's in ignore_merges")
    return name


def _no_name(why: str) -> UserError:
    return UserError(f"this tokenizer cannot be written as GGUF: {why}")


def add_vocabulary(writer: Any, tokenizer: Tokenizer, experiment: Any) -> None:
    """Tokens with their kinds, merges, the ids at the ends of texts, the chat template; a row of the model for each token."""
    loaded = tokenizer.loaded
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split_name(tokenizer))
    names, kinds = _tokens(tokenizer, experiment.model.vocab_size)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    merges = json.loads(loaded.backend.to_str())["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = generation_of(experiment, tokenizer)
    writer.add_bos_token_id(ids["bos_token_id"])
    writer.add_eos_token_id(tokenizer.eos_id)
    if ids.get("pad_token_id") is not None:
        writer.add_pad_token_id(ids["pad_token_id"])
    writer.add_add_bos_token(begins_texts(tokenizer))
    if isinstance(template := loaded.config.get("chat_template"), str):
        writer.add_chat_template(template)


def _tokens(tokenizer: Tokenizer, rows: int) -> tuple[list[str], list[int]]:
    """Name and kind of each row; rows that no token has are there too, as llama.cpp counts them."""
    backend = tokenizer.loaded.backend
    names, kinds = [f"[PAD{row}]" for row in range(rows)], [UNUSED] * rows
    for name, row in backend.get_vocab(with_added_tokens=True).items():
        names[row], kinds[row] = name, NORMAL
    for row, token in backend.get_added_tokens_decoder().items():
        names[row], kinds[row] = token.content, CONTROL if token.special else USER_DEFINED
    return names, kinds
