"""Conversations as memory-mapped token ids with what is trained of them, made once and cached: `tokenize_chat`.

The ids are those of the whole text that the template writes. Beside each lies what it counts for: 0 where it is read
only, else 1 and the bytes of text that it stands for. A conversation ends with its last trained token. In: a `ChatSource`
and a tokenizer. Out: tokens.bin, trained.bin, index.bin and meta.json under a key of all that decides them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from forgather_dsl.data import cache
from forgather_dsl.data.chat_mask import Encoded, Mask
from forgather_dsl.data.chat_source import ChatSource, Faults
from forgather_dsl.data.templates import Conversation, Span, Template
from forgather_dsl.data.tokenizers import Tokenizer
from forgather_dsl.errors import UserError

__all__ = ["ChatFile", "tokenize_chat"]

VERSION = 1
BATCH = 512  # conversations encoded at a time
TOKENS, TRAINED, INDEX, META = "tokens.bin", "trained.bin", "index.bin", "meta.json"


@dataclass(frozen=True)
class ChatFile:
    """Tokenised conversations, memory-mapped."""

    folder: Path
    array: np.ndarray  # [num_tokens], uint16 or uint32, read-only
    trained: np.ndarray  # [num_tokens], uint16: 0 for what is read only, else 1 + the bytes of text of the token
    ends: np.ndarray  # [num_documents], int64: where each conversation ends
    num_tokens: int
    num_trained: int
    num_bytes: int  # of the trained text, in UTF-8; tokens that are no text, such as the end of a turn, have none
    num_documents: int  # conversations
    num_skipped: int  # records that were left out
    fingerprint: str  # SHA-256 of all three arrays as stored
    too_long: str  # what is done with a conversation longer than a sequence
    gzip_bits_per_byte: float | None = None  # gzip is not told what was asked, so it is no yardstick here


def tokenize_chat(
    source: ChatSource,
    tokenizer: Tokenizer,
    cache_dir: str | Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> ChatFile:
    """The conversations of a source's split, from the cache or encoded now.

    `progress` is called with the number of conversations so far. Raises: UserError: bad records, a template that cannot
    be trained on exactly, nothing in this split, or a disk that cannot be written.
    """
    template = source.template_for(tokenizer)
    made_from = {
        "source": source.identity(),
        "tokenizer": tokenizer.digest,
        "template": template.text,
        "special": template.special,
        "train_on": source.train_on,
    }
    folder = Path(cache_dir or cache.cache_root()) / "chats" / cache.key(version=VERSION, **made_from)
    build = lambda path: _write(path, source, tokenizer, template, progress)  # noqa: E731
    return cache.once(folder, build, lambda path: _read(path, source.too_long))


def _write(
    folder: Path, source: ChatSource, tokenizer: Tokenizer, template: Template, progress: Callable[[int], None] | None
) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32)
    faults, ends, digest = Faults(source.skip), [], hashlib.sha256()
    num_tokens = num_trained = num_bytes = 0
    with open(folder / TOKENS, "wb") as tokens, open(folder / TRAINED, "wb") as trained:
        for one in encoded(source, tokenizer, template, faults):
            counted = one.trained[one.trained > 0]
            num_tokens += len(one.ids)
            num_trained += len(counted)
            num_bytes += int(counted.sum()) - len(counted)
            ends.append(num_tokens)
            for file, values in ((tokens, one.ids.astype(dtype)), (trained, one.trained.astype(np.uint16))):
                file.write(values.data)
                digest.update(values.data)
            if progress is not None:
                progress(len(ends))
    faults.end(nothing_good=not ends)
    if not ends:
        raise UserError(
            f"{source}: no conversation in split {source.split!r}: more of them, or another held_out, are needed."
        )
    index = np.array(ends, np.int64)
    (folder / INDEX).write_bytes(index.data)
    digest.update(index.data)
    meta = {
        "version": VERSION,
        "dtype": dtype.name,
        "tokens": num_tokens,
        "trained": num_trained,
        "bytes": num_bytes,
        "documents": len(ends),
        "skipped": faults.count,
        "fingerprint": digest.hexdigest(),
        "mtime_ns": [(folder / name).stat().st_mtime_ns for name in (TOKENS, TRAINED, INDEX)],
    }
    (folder / META).write_text(json.dumps(meta) + "\n", encoding="utf-8")


def encoded(source: ChatSource, tokenizer: Tokenizer, template: Template, faults: Faults) -> Iterator[Encoded]:
    """Every conversation of the split; what cannot be trained on exactly goes to `faults`."""
    found = source.conversations(faults)
    mask = Mask(tokenizer)
    while batch := list(islice(found, BATCH)):
        written: list[tuple[Conversation, str, list[Span]]] = []
        for one in batch:
            try:
                mask.refuse_special(one)
                written.append((one, *template.spans(one, source.train_on)))
            except UserError as error:
                faults.add(error)
        ids = tokenizer.encode_templated([text for _, text, _ in written])
        for (one, text, spans), (numbers, offsets) in zip(written, ids):
            try:
                result = mask.encoded(one.where, text, spans, numbers, offsets)
            except UserError as error:
                faults.add(error)
                continue
            if result is not None:
                yield result


def _read(folder: Path, too_long: str) -> ChatFile | None:
    """The folder's conversations, or None if they are missing or damaged; hashed only if a file was touched."""
    try:
        meta: dict[str, Any] = json.loads((folder / META).read_text(encoding="utf-8"))
        kinds = (np.dtype(meta["dtype"]), np.dtype(np.uint16), np.dtype(np.int64))
        counts = (meta["tokens"], meta["tokens"], meta["documents"])
        paths = [folder / name for name in (TOKENS, TRAINED, INDEX)]
        facts = [path.stat() for path in paths]
        if [fact.st_size for fact in facts] != [n * kind.itemsize for n, kind in zip(counts, kinds)]:
            return None
        arrays = [np.memmap(path, kind, mode="r") for path, kind in zip(paths, kinds)]
        if [fact.st_mtime_ns for fact in facts] != meta["mtime_ns"] and _hash(folder, meta) != meta["fingerprint"]:
            return None
        return ChatFile(
            folder=folder,
            array=arrays[0],
            trained=arrays[1],
            ends=arrays[2],
            num_tokens=meta["tokens"],
            num_trained=meta["trained"],
            num_bytes=meta["bytes"],
            num_documents=meta["documents"],
            num_skipped=meta["skipped"],
            fingerprint=meta["fingerprint"],
            too_long=too_long,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _hash(folder: Path, meta: dict[str, Any]) -> str:
    """As `_write` hashed it: conversation by conversation, tokens and what they count for, then the index."""
    kind = np.dtype(meta["dtype"])
    index = np.fromfile(folder / INDEX, np.int64)
    digest = hashlib.sha256()
    with open(folder / TOKENS, "rb") as tokens, open(folder / TRAINED, "rb") as trained:
        for length in np.diff(index, prepend=0):
            digest.update(tokens.read(int(length) * kind.itemsize))
            digest.update(trained.read(int(length) * 2))
    digest.update(index.data)
    return digest.hexdigest()
