"""Folders as transformers writes them: random models of each family, tokenizers made here, nothing downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, trainers

SIZES: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 80,
    "vocab_size": 263,
    "max_position_embeddings": 64,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "Llama": {"attention_bias": True, "mlp_bias": True, "head_dim": 10},
    "Mistral": {"sliding_window": 7, "head_dim": 10},
    "Qwen2": {},
    "Qwen3": {"head_dim": 10},
}
STRETCHED = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
TEXT = [
    "def words(text):\n    return text.split()\n",
    "numbers 12345 and don't stop, it's fine\n",
    "caf\u00e9 \u65e5\u672c",
]


def write_model(folder: Path, family: str, tied: bool, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """Save a random model of a family whose logits tell something; returns it."""
    config = getattr(transformers, f"{family}Config")(
        **{**SIZES, **OPTIONS[family], "tie_word_embeddings": tied, **changes}
    )
    torch.manual_seed(5)
    model = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0.0, 0.1).add_(1.0 if parameter.dim() == 1 else 0.0)
    model.save_pretrained(folder, max_shard_size="60KB")
    return model


def write_tokenizer(folder: Path, vocab_size: int = 262, pattern: str | None = None, **config: Any) -> None:
    """Save a byte-level BPE with `<s>` and `</s>`, and a chat template, as transformers has them."""
    backend = tokenizers.Tokenizer(models.BPE())
    level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)
    if pattern is not None:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
        level = pre_tokenizers.Sequence([split, level])
    backend.pre_tokenizer = level
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXT * 3, trainer)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
