"""Text to token ids and back: `TrainedBPE` (trained here, cached), `TokenizerFile`, `HFTokenizer`, `Bytes`.

All are one object of the `tokenizers` library plus the name of the token that separates documents (`eos`), loaded
on first use. Saved as tokenizer.json with a tokenizer_config.json, so that transformers opens the folder too.
Byte-level BPE as in GPT-2 (Radford et al. 2019): every UTF-8 text comes back exactly.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from forgather_dsl.data import bpe, cache
from forgather_dsl.data.documents import Source
from forgather_dsl.data.tokenizer_files import (
    CONFIG,
    FILE,
    TEMPLATE,
    count_tokens,
    find_eos,
    from_file,
    from_pretrained,
)
from forgather_dsl.errors import UserError

__all__ = ["Bytes", "HFTokenizer", "Tokenizer", "TokenizerFile", "TrainedBPE", "count_tokens", "load_tokenizer"]

END_OF_TEXT = "<|endoftext|>"


class Loaded(NamedTuple):
    """A tokenizer in memory."""

    backend: tokenizers.Tokenizer
    eos: str
    config: dict[str, Any]  # what else its tokenizer_config.json says, the chat template for one


class Tokenizer(ABC):
    """Text to ids and back. A subclass gives `load`; nothing is read, trained or downloaded before the first use."""

    def __init__(self, *, vocab_size: int) -> None:
        self.vocab_size = vocab_size  # rows that the model's embedding has; not fewer than there are tokens

    @abstractmethod
    def load(self) -> Loaded:
        """Raises: UserError: the tokenizer cannot be had, or has no such `eos`."""

    @cached_property
    def loaded(self) -> Loaded:
        """The tokenizer, without the truncation and padding that many tokenizer.json files ask for.

        Raises: UserError: it has ids beyond `vocab_size`.
        """
        loaded = self.load()
        num_tokens = max(loaded.backend.get_vocab().values()) + 1  # not their number: vocabularies have gaps
        if num_tokens > self.vocab_size:
            raise UserError(f"{self}: its ids need vocab_size={num_tokens}, not {self.vocab_size}.")
        loaded.backend.no_truncation()
        loaded.backend.no_padding()
        return loaded

    @cached_property
    def eos_id(self) -> int:
        """The token between documents."""
        return self.loaded.backend.get_vocab()[self.loaded.eos]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides which ids a text gets."""
        backend, eos, _ = self.loaded
        parts = [backend.to_str(), eos, str(backend.encode_special_tokens)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any token added at its ends."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, encoded on all cores."""
        encoded = self.loaded.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    @cached_property
    def _untrimmed(self) -> tokenizers.Tokenizer:
        """The same ids, with offsets that are not trimmed."""
        backend = tokenizers.Tokenizer.from_str(self.loaded.backend.to_str())
        backend.encode_special_tokens = self.loaded.backend.encode_special_tokens
        backend.post_processor = None
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode_ends(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """Ids as `encode_batch` gives them, and where each ends in its text, in characters; a part of one ends with it."""
        encoded = self._untrimmed.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, [end for _, end in encoding.offsets]) for encoding in encoded]

    @cached_property
    def _templated(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.loaded.backend.to_str())
        backend.post_processor = None  # it would trim offsets
        backend.no_truncation()
        backend.no_padding()
        return backend

    def encode_templated(self, texts: list[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of what a chat template wrote, and the characters (start, stop) of each.

        Special tokens are what they name, whatever they are in the texts of others.
        """
        encoded = self._templated.encode_batch(texts, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out; bytes that are not UTF-8 become U+FFFD."""
        return self.loaded.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and a chat template, for `load_tokenizer` and for transformers."""
        backend, eos, config = self.loaded
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        backend.save(str(folder / FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            **config,
            "eos_token": eos,
            "split_special_tokens": backend.encode_special_tokens,
        }
        template = config.pop("chat_template", None)
        if isinstance(template, str):
            (folder / TEMPLATE).write_text(template, encoding="utf-8")
        elif template is not None:  # several, by name
            config["chat_template"] = template
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """What `save` wrote. Raises: UserError: there is no tokenizer in this folder."""
    if not (Path(folder) / FILE).is_file():
        raise UserError(f"{folder}: no {FILE} here, so no saved tokenizer.")
    tokenizer = HFTokenizer(path=str(folder), eos=None, vocab_size=count_tokens(str(folder)))
    _ = tokenizer.loaded  # so that a damaged folder is an error here
    return tokenizer


class TrainedBPE(Tokenizer):
    """A byte-level BPE of exactly `vocab_size` tokens, trained on a sample of a source's train split, then cached.

    `sample_bytes`: text to train on, taken in small blocks from all over the corpus. Token 0 ends documents;
    its name inside a text is ordinary text, so no document can end itself.
    """

    def __init__(self, *, vocab_size: int, source: Source, sample_bytes: int) -> None:
        """Raises: UserError: a vocabulary without room for 256 bytes and `<|endoftext|>`, or no sample."""
        if vocab_size < bpe.SMALLEST:
            need = "256 bytes and <|endoftext|>"
            raise UserError(f"vocab_size={vocab_size}: {need} need {bpe.SMALLEST}; write at least that, or Bytes().")
        if sample_bytes < 1:
            raise UserError(f"sample_bytes={sample_bytes}: write how much text to train on, such as 1_000_000.")
        super().__init__(vocab_size=vocab_size)
        self.source = source.with_split("train")
        self.sample_bytes = sample_bytes

    def load(self) -> Loaded:
        """From the cache, or trained. Raises: UserError: the text does not give so many tokens."""
        made_from = {"vocab_size": self.vocab_size, "sample_bytes": self.sample_bytes, "source": self.source.identity()}
        folder = cache.cache_root() / "tokenizers" / cache.key(kind="bpe", version=bpe.VERSION, **made_from)
        text = cache.once(folder, self._train, _read_verified)
        backend = tokenizers.Tokenizer.from_str(text)
        backend.encode_special_tokens = True
        return Loaded(backend, END_OF_TEXT, {})

    def _train(self, folder: Path) -> None:
        text = bpe.train(self.source, self.vocab_size, self.sample_bytes, END_OF_TEXT).to_str()
        (folder / FILE).write_text(text, encoding="utf-8")
        (folder / "sha256").write_text(hashlib.sha256(text.encode()).hexdigest())

    def __str__(self) -> str:
        return f"byte-level BPE, {self.vocab_size} tokens, trained on {self.sample_bytes / 1e6:.3g} MB of {self.source}"


def _read_verified(folder: Path) -> str | None:
    try:
        data = (folder / FILE).read_bytes()
        wanted = (folder / "sha256").read_text()
    except OSError:
        return None
    return data.decode() if hashlib.sha256(data).hexdigest() == wanted else None


class TokenizerFile(Tokenizer):
    """A tokenizer.json of the `tokenizers` library. `eos` separates documents, `"</s>"` say; None tries usual names."""

    def __init__(self, *, path: str, eos: str | None, vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self.path = path
        self.eos = eos

    def load(self) -> Loaded:
        """Raises: UserError: no such file, not a tokenizer, or no such token."""
        backend = from_file(Path(self.path).expanduser())
        return Loaded(backend, find_eos(backend, self.eos, self.path), {})

    def __str__(self) -> str:
        return f"tokenizer {self.path}, {self.vocab_size} tokens"


class HFTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face kind: a local folder, or a hub id. `eos=None`: the one its configuration names.

    Special tokens written in a text become what they name, as in transformers, unless the configuration says
    `split_special_tokens`.
    """

    def __init__(self, *, path: str, eos: str | None, vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self.path = path
        self.eos = eos

    def load(self) -> Loaded:
        """Raises: UserError: no such folder or hub id, nothing in it, or no such token."""
        backend, config = from_pretrained(self.path)
        eos = self.eos or config.get("eos_token")
        if isinstance(eos, dict):  # transformers may write a token with its options
            eos = eos.get("content")
        backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        return Loaded(backend, find_eos(backend, eos, self.path), config)

    def __str__(self) -> str:
        return f"tokenizer {self.path}, {self.vocab_size} tokens"


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8 and `<|endoftext|>` (256): no training, three times as many tokens as a BPE."""

    def load(self) -> Loaded:
        """The same as a tokenizer.json: a BPE with no merges."""
        return Loaded(bpe.only_bytes(END_OF_TEXT), END_OF_TEXT, {})

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The bytes of each text."""
        return [list(text.encode()) for text in texts]

    def encode_ends(self, texts: list[str]) -> list[tuple[list[int], list[int]]]:
        """The bytes of each text; all bytes of a character end with it."""
        ends = [[number for number, char in enumerate(text, start=1) for _ in char.encode()] for text in texts]
        return list(zip(self.encode_batch(texts), ends))

    def __str__(self) -> str:
        return f"bytes, {self.vocab_size} tokens"
