"""A corpus as one memory-mapped stream of token ids, made once and cached: `tokenize` returns a `TokenFile`.

The stream is eos, document, eos, document, ..., eos: each document begins after a boundary and its end is predicted,
so every token of text is a target. In: a source and a tokenizer. Out: tokens.bin (uint16, or uint32 above 65536 ids)
and meta.json, under a key of both, written as it is encoded: memory stays bounded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forgather_dsl.data import cache
from forgather_dsl.data.compression import GzipSize
from forgather_dsl.data.documents import Source
from forgather_dsl.data.tokenizers import Tokenizer
from forgather_dsl.errors import UserError

VERSION = 1  # of the stream and of meta.json; part of the cache key
BATCH = 1 << 21  # characters encoded at a time
TOKENS, META = "tokens.bin", "meta.json"


@dataclass(frozen=True)
class TokenFile:
    """A tokenised corpus, memory-mapped."""

    folder: Path
    array: np.ndarray  # [num_tokens], uint16 or uint32, read-only
    num_tokens: int  # boundaries included
    num_bytes: int  # of the text, in UTF-8
    num_documents: int
    fingerprint: str  # SHA-256 of the tokens as stored
    gzip_bits_per_byte: float | None  # of gzip -9 on the text; None unless the source is a held-out split


def tokenize(
    source: Source,
    tokenizer: Tokenizer,
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> TokenFile:
    """The tokens of a source's split, from the cache or encoded now; a damaged cache is made again.

    `cache_dir` None: `cache.cache_root()`. `progress` is called with the bytes of text encoded so far.
    Raises: UserError: bad input, no text in this split, or a disk that cannot be written.
    """
    made_from = {"source": source.identity(), "tokenizer": tokenizer.digest}
    folder = Path(cache_dir or cache.cache_root()) / "tokens" / cache.key(version=VERSION, **made_from)
    return cache.once(folder, lambda path: _write(path, source, tokenizer, made_from, progress), _read)


def _write(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    made_from: dict[str, Any],
    progress: Callable[[int], None] | None,
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    digest = hashlib.sha256()
    gzip = GzipSize() if source.split == "held_out" else None
    num_tokens = num_bytes = num_documents = 0
    boundary = np.array([tokenizer.eos_id], dtype)
    with open(folder / TOKENS, "wb") as file:

        def append(ids: np.ndarray) -> None:
            nonlocal num_tokens
            file.write(ids.data)
            digest.update(ids.data)
            num_tokens += len(ids)

        for batch in _batches(source):
            encoded = tokenizer.encode_batch([text for _, text in batch])
            for (starts_document, text), ids in zip(batch, encoded):
                if starts_document:
                    append(boundary)
                    num_documents += 1
                append(np.array(ids, dtype))
                utf8 = text.encode()
                num_bytes += len(utf8)
                if gzip is not None:
                    gzip.add(utf8)
            if progress is not None:
                progress(num_bytes)
        append(boundary)
    if num_documents == 0:
        raise UserError(
            f"{source}: no text in split {source.split!r}: more documents, or another held_out, are needed."
        )
    meta = {
        "version": VERSION,
        "dtype": dtype.name,
        "tokens": num_tokens,
        "bytes": num_bytes,
        "documents": num_documents,
        "fingerprint": digest.hexdigest(),
        "mtime_ns": (folder / TOKENS).stat().st_mtime_ns,
        "gzip_bits_per_byte": gzip.bits_per_byte() if gzip is not None else None,
        **made_from,
    }
    (folder / META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def _batches(source: Source) -> Iterator[list[tuple[bool, str]]]:
    """Pieces of text, each with whether it starts a document, in batches of about `BATCH` characters."""
    batch: list[tuple[bool, str]] = []
    size = 0
    for pieces in source.pieces():
        starts_document = True
        for piece in pieces:
            batch.append((starts_document, piece))
            starts_document = False
            size += len(piece)
            if size >= BATCH:
                yield batch
                batch, size = [], 0
    if batch:
        yield batch


def _read(folder: Path) -> TokenFile | None:
    """The folder's tokens, or None if they are missing or damaged.

    The size is always compared, the hash only if the file was touched since it was written: hashing 20 GB at each
    start would take longer than the start.
    """
    path = folder / TOKENS
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        dtype = np.dtype(meta["dtype"])
        facts = path.stat()
        if facts.st_size != meta["tokens"] * dtype.itemsize:
            return None
        if facts.st_mtime_ns != meta["mtime_ns"]:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != meta["fingerprint"]:
                    return None
        return TokenFile(
            folder=folder,
            array=np.memmap(path, dtype, mode="r"),
            num_tokens=meta["tokens"],
            num_bytes=meta["bytes"],
            num_documents=meta["documents"],
            fingerprint=meta["fingerprint"],
            gzip_bits_per_byte=meta["gzip_bits_per_byte"],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
