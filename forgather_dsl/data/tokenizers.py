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
from forgather_dsl.data.problems import closest
from forgather_dsl.errors import UserError

END_OF_TEXT = "<|endoftext|>"
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


class Loaded(NamedTuple):
    """A tokenizer in memory."""

    backend: tokenizers.Tokenizer
    eos: str


class Tokenizer(ABC):
    """Text to ids and back. A subclass gives `load`; nothing is read, trained or downloaded before the first use."""

    @abstractmethod
    def load(self) -> Loaded:
        """Raises: UserError: the tokenizer cannot be had, or has no such `eos`."""

    @cached_property
    def loaded(self) -> Loaded:
        """The tokenizer, without the truncation and padding that many tokenizer.json files ask for."""
        loaded = self.load()
        loaded.backend.no_truncation()
        loaded.backend.no_padding()
        return loaded

    @cached_property
    def vocab_size(self) -> int:
        """Rows that an embedding needs: the largest id and one (vocabularies may have gaps)."""
        return max(self.loaded.backend.get_vocab().values()) + 1

    @cached_property
    def eos_id(self) -> int:
        """The token between documents."""
        backend, eos = self.loaded
        return backend.get_vocab()[eos]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides which ids a text gets."""
        backend, eos = self.loaded
        parts = [backend.to_str(), eos, str(backend.encode_special_tokens)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without any token added at its ends."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, encoded on all cores."""
        encoded = self.loaded.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens written out; bytes that are not UTF-8 become U+FFFD."""
        return self.loaded.backend.decode(list(ids), skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, for `load_tokenizer` and for transformers."""
        backend, eos = self.loaded
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        backend.save(str(folder / FILE))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": eos,
            "split_special_tokens": backend.encode_special_tokens,
            "clean_up_tokenization_spaces": False,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """What `save` wrote. Raises: UserError: there is no tokenizer in this folder."""
    if not (Path(folder) / FILE).is_file():
        raise UserError(f"{folder}: no {FILE} here, so no saved tokenizer.")
    tokenizer = HFTokenizer(path=str(folder), eos=None)
    _ = tokenizer.loaded
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
        self.size = vocab_size
        self.source = source.with_split("train")
        self.sample_bytes = sample_bytes

    @cached_property
    def vocab_size(self) -> int:
        """As asked for."""
        return self.size

    def load(self) -> Loaded:
        """From the cache, or trained. Raises: UserError: the text does not give so many tokens."""
        made_from = {"vocab_size": self.size, "sample_bytes": self.sample_bytes, "source": self.source.identity()}
        folder = cache.cache_root() / "tokenizers" / cache.key(kind="bpe", version=bpe.VERSION, **made_from)
        text = cache.once(folder, self._train, _read_verified)
        backend = tokenizers.Tokenizer.from_str(text)
        backend.encode_special_tokens = True
        return Loaded(backend, END_OF_TEXT)

    def _train(self, folder: Path) -> None:
        text = bpe.train(self.source, self.size, self.sample_bytes, END_OF_TEXT).to_str()
        (folder / FILE).write_text(text, encoding="utf-8")
        (folder / "sha256").write_text(hashlib.sha256(text.encode()).hexdigest())

    def __str__(self) -> str:
        return f"byte-level BPE, {self.size} tokens, trained on {self.sample_bytes / 1e6:.3g} MB of {self.source}"


def _read_verified(folder: Path) -> str | None:
    try:
        data = (folder / FILE).read_bytes()
        wanted = (folder / "sha256").read_text()
    except OSError:
        return None
    return data.decode() if hashlib.sha256(data).hexdigest() == wanted else None


class TokenizerFile(Tokenizer):
    """A tokenizer.json of the `tokenizers` library; `eos` is the token that separates documents, such as `"</s>"`."""

    def __init__(self, *, path: str, eos: str) -> None:
        self.path = path
        self.eos = eos

    def load(self) -> Loaded:
        """Raises: UserError: no such file, not a tokenizer, or no such token."""
        return Loaded(*_with_eos(_from_file(Path(self.path).expanduser()), self.eos, self.path))

    def __str__(self) -> str:
        return f"tokenizer {self.path}, {self.vocab_size} tokens"


class HFTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face kind: a local folder, or a hub id. `eos=None`: the one its configuration names.

    A tokenizer.json is read by `tokenizers` alone; only older formats import transformers, which converts them.
    Ids are those of transformers' `AutoTokenizer` with `add_special_tokens=False`.
    """

    def __init__(self, *, path: str, eos: str | None) -> None:
        self.path = path
        self.eos = eos

    def load(self) -> Loaded:
        """Raises: UserError: no such folder or hub id, nothing in it, no `eos` or no such token."""
        folder = Path(self.path).expanduser()
        files = {name: folder / name for name in (FILE, CONFIG)} if folder.is_dir() else self._fetch()
        config = _json(files[CONFIG]) if files[CONFIG].is_file() else {}
        backend = _from_file(files[FILE]) if files[FILE].is_file() else self._convert()
        eos = self.eos or config.get("eos_token")
        if isinstance(eos, dict):  # transformers writes a token with its options
            eos = eos.get("content")
        backend.encode_special_tokens = bool(config.get("split_special_tokens", False))
        return Loaded(*_with_eos(backend, eos, self.path))

    def _fetch(self) -> dict[str, Path]:
        """The files of a hub tokenizer, from the hub's cache where they are; a missing one as a path to nothing."""
        import huggingface_hub
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        files = {}
        for name in (FILE, CONFIG):
            try:
                files[name] = Path(huggingface_hub.hf_hub_download(self.path, name))
            except Exception as error:  # many kinds: no network, no such repository, not a name for one, no access
                if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                    files[name] = Path(name + ".missing")  # the repository is there and has no such file
                    continue
                where = f"HFTokenizer(path={self.path!r}): no such folder, and not to be had from the hub"
                raise UserError(f"{where}: {type(error).__name__}: {error}") from error
        return files

    def _convert(self) -> tokenizers.Tokenizer:
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.path)
            return tokenizer.backend_tokenizer
        except Exception as error:  # whatever a converter trips over
            where = f"HFTokenizer(path={self.path!r}): no {FILE}, and transformers cannot make one"
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error

    def __str__(self) -> str:
        return f"tokenizer {self.path}, {self.vocab_size} tokens"


class Bytes(Tokenizer):
    """The 256 bytes of UTF-8 and `<|endoftext|>` (256): no training, three times as many tokens as a BPE."""

    def load(self) -> Loaded:
        """The same as a tokenizer.json: a BPE with no merges."""
        return Loaded(bpe.only_bytes(END_OF_TEXT), END_OF_TEXT)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """The bytes of each text."""
        return [list(text.encode()) for text in texts]

    def __str__(self) -> str:
        return "bytes, 257 tokens"


def _from_file(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        near = closest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise UserError(f"{path}: no such tokenizer file.{f' Did you mean {near!r}?' if near else ''}")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a tokenizer.json: {error}") from error


def _with_eos(backend: tokenizers.Tokenizer, eos: str | None, where: str) -> tuple[tokenizers.Tokenizer, str]:
    """Raises: UserError: no eos, or one that is not in the vocabulary; the special tokens there are."""
    if eos is not None and backend.token_to_id(eos) is not None:
        return backend, eos
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    have = f"special tokens here: {', '.join(map(repr, special)) or 'none'}"
    if eos is None:
        raise UserError(f"{where}: no eos_token in {CONFIG}; write eos='...'; {have}.")
    near = closest(eos, special) or closest(eos, backend.get_vocab())
    hint = f" Did you mean eos={near!r}?" if near else ""
    raise UserError(f"{where}: eos={eos!r} is not in the vocabulary; {have}.{hint}")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
