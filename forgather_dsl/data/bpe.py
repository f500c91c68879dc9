"""Training a byte-level BPE on a small, evenly spread sample of a corpus.

In: a source, a vocabulary size, an amount of text. Out: a `tokenizers.Tokenizer` with exactly so many tokens.
The sample is taken in one pass whatever the corpus's size: every n-th block of lines, n doubling as it fills up.
"""

from __future__ import annotations

from collections.abc import Iterator

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from forgather_dsl.data.documents import Source
from forgather_dsl.errors import UserError

VERSION = 1  # of the sampling and training below; part of the cache key
BLOCKS = 256  # blocks in a sample: many, so that no part of the corpus outweighs another
SMALLEST = 257  # 256 bytes and the end of text
OFTEN = 2  # a pair seen once is no regularity


def train(source: Source, vocab_size: int, sample_bytes: int, eos: str) -> tokenizers.Tokenizer:
    """Train on a sample; the same text and numbers give the same tokenizer. `eos` gets id 0.

    Raises: UserError: the sample gives fewer tokens than `vocab_size`; says how many.
    """
    texts, total_bytes = sample(source, sample_bytes)
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=OFTEN,
        special_tokens=[eos],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached != vocab_size:
        used = sum(len(text.encode()) for text in texts)
        if used < total_bytes:
            more = f"sample_bytes={min(total_bytes, 10 * sample_bytes)} (the corpus has {total_bytes})"
        else:
            more = "give it more text"
        raise UserError(
            f"TrainedBPE: {used} bytes of text ({source}) give {reached} tokens, not {vocab_size}: "
            f"write vocab_size={reached} or less, or {more}."
        )
    return tokenizer


def only_bytes(eos: str) -> tokenizers.Tokenizer:
    """The byte-level tokenizer with no merges: ids 0 to 255 are the bytes, 256 is `eos`."""
    tokenizer = _byte_level(models.BPE(vocab={sign: byte for byte, sign in enumerate(_signs())}, merges=[]))
    tokenizer.add_special_tokens([eos])
    tokenizer.encode_special_tokens = True
    return tokenizer


def _signs() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself if printable, else one from U+0100 on (GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sample(source: Source, sample_bytes: int) -> tuple[list[str], int]:
    """About `sample_bytes` of text spread evenly over the source (all of it, if smaller), and the source's bytes."""
    kept: list[str] = []
    kept_bytes = total_bytes = 0
    stride = 1
    for index, block in enumerate(_blocks(source, max(sample_bytes // BLOCKS, 1))):
        size = len(block.encode())
        total_bytes += size
        if index % stride == 0:
            kept.append(block)
            kept_bytes += size
        if kept_bytes > 2 * sample_bytes and len(kept) > 1:
            kept = kept[::2]
            kept_bytes = sum(len(text.encode()) for text in kept)
            stride *= 2
    if kept_bytes > sample_bytes:
        num_kept = max(1, len(kept) * sample_bytes // kept_bytes)
        kept = [kept[i * len(kept) // num_kept] for i in range(num_kept)]
    return kept, total_bytes


def _blocks(source: Source, size: int) -> Iterator[str]:
    """The text in blocks of at least `size` characters that end with a line (or with their piece)."""
    for pieces in source.pieces():
        for piece in pieces:
            start = 0
            while start < len(piece):
                stop = piece.find("\n", start + size - 1) + 1 or len(piece)
                yield piece[start:stop]
                start = stop
