"""A token stream as sequences: windows of `seq_len` targets that overlap by one token; the last, shorter one is padded.

So each token is a target exactly once per epoch. Order and resuming are in order.py.
"""

from __future__ import annotations

import numpy as np

from forgather_dsl.data.order import IGNORED, Batch, Sequences
from forgather_dsl.data.tokens import TokenFile
from forgather_dsl.errors import UserError

__all__ = ["IGNORED", "Batch", "Loader"]


class Loader(Sequences):
    """Windows of a `TokenFile`.

    `documents`: also give each position the number of its document in the row (a boundary belongs to the document it
    begins).
    """

    def __init__(
        self,
        *,
        tokens: TokenFile,
        seq_len: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        eos_id: int,
        documents: bool,
        rank: int,
        replicas: int,
    ) -> None:
        """Raises: UserError: a sequence longer than the data, or a batch that replicas cannot share evenly."""
        super().__init__(
            seq_len=seq_len, batch_size=batch_size, seed=seed, shuffle=shuffle, rank=rank, replicas=replicas
        )
        num_targets = tokens.num_tokens - 1
        if seq_len > num_targets:
            raise UserError(
                f"seq_len = {seq_len}, but the data has {num_targets} tokens to predict: "
                f"write seq_len = {num_targets} or less, or give it more text ({tokens.num_bytes} bytes now)."
            )
        self.tokens = tokens
        self.fingerprint = tokens.fingerprint
        self.eos_id = eos_id
        self.documents = documents
        self.num_sequences = -(-num_targets // seq_len)

    @property
    def num_bytes(self) -> int:
        """All of the text; its boundaries are targets too and have no bytes."""
        return self.tokens.num_bytes

    @property
    def described(self) -> str:
        """Nothing: every token is a target once."""
        return ""

    def _fill(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        tokens = np.full((len(numbers), self.seq_len), self.eos_id, np.int64)
        targets = np.full((len(numbers), self.seq_len), IGNORED, np.int64)
        for row, window in enumerate(numbers):
            span = self.tokens.array[window * self.seq_len : (window + 1) * self.seq_len + 1]
            length = max(len(span) - 1, 0)
            tokens[row, :length] = span[:-1]
            targets[row, :length] = span[1:]
        documents = np.cumsum(tokens == self.eos_id, axis=1, dtype=np.int32) if self.documents else None
        return tokens, targets, documents

    def _num_valid(self, numbers: np.ndarray) -> int:
        """Every window is full but the last, and there is none after it."""
        first = numbers * self.seq_len
        return int(np.clip(self.tokens.num_tokens - 1 - first, 0, self.seq_len).sum())
