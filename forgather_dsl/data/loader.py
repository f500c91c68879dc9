"""Batches of fixed shape from a token stream, in an order that depends on (seed, epoch) alone, resumable in O(1).

The stream is cut into windows of `seq_len` targets that overlap by one token; the last, shorter one is padded. So each
token is a target exactly once per epoch. The state counts sequences, hence it outlives a change of batch size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from forgather_dsl.data.tokens import TokenFile
from forgather_dsl.errors import UserError

IGNORED = -100  # the target that losses skip, torch's convention


@dataclass(frozen=True)
class Batch:
    """This replica's rows of one global batch."""

    tokens: np.ndarray  # int64 [batch, seq]
    targets: np.ndarray  # int64 [batch, seq]; IGNORED on padding
    documents: np.ndarray | None  # int32 [batch, seq]: equal within a row where attention may go
    num_valid: int  # targets of the whole global batch that are not IGNORED


class Loader:
    """Endless batches (`next_batch`) or one ordered pass (`eval_batches`) over a `TokenFile`.

    `batch_size` counts the sequences of all replicas together; replica `rank` gets its consecutive
    `batch_size / replicas` rows of each batch. `documents`: also give each position the number of its document in
    the row (a boundary belongs to the document it begins).
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
        for name, value, least in (("seq_len", seq_len, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"{name} = {value}: write {least} or more.")
        num_targets = tokens.num_tokens - 1
        if seq_len > num_targets:
            raise UserError(
                f"seq_len = {seq_len}, but the data has {num_targets} tokens to predict: "
                f"write seq_len = {num_targets} or less, or give it more text ({tokens.num_bytes} bytes now)."
            )
        if batch_size % replicas:
            fits = batch_size // replicas * replicas or replicas
            raise UserError(f"batch_size = {batch_size} does not divide by {replicas} replicas: write {fits}.")
        self.tokens = tokens
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.eos_id = eos_id
        self.documents = documents
        self.rank = rank
        self.replicas = replicas
        self.num_sequences = -(-num_targets // seq_len)
        self.epoch = 0
        self.position = 0  # sequences of this epoch that were given out, to all replicas together
        self._order: tuple[int, np.ndarray] | None = None

    def next_batch(self) -> Batch:
        """The next rows of this replica; goes on into the next epoch where the data ends, within a batch too."""
        drawn: list[np.ndarray] = []
        missing = self.batch_size
        while missing:
            rows = self._epoch_order()[self.position : self.position + missing]
            drawn.append(rows)
            missing -= len(rows)
            self.position += len(rows)
            if self.position == self.num_sequences:
                self.epoch, self.position = self.epoch + 1, 0
        return self._gather(np.concatenate(drawn))

    def eval_batches(self) -> Iterator[Batch]:
        """Every window once, in the order of the stream; the last batch is filled up with rows of ignored targets."""
        for start in range(0, self.num_sequences, self.batch_size):
            yield self._gather(np.arange(start, start + self.batch_size))

    def state_dict(self) -> dict[str, int]:
        """Where the data stands: {epoch, position}, the same on every replica."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from there. Raises: UserError: a position that this data does not have."""
        if not 0 <= state["position"] < self.num_sequences:
            raise UserError(
                f"data position {state['position']} of epoch {state['epoch']} is not in this data, which has "
                f"{self.num_sequences} sequences of seq_len = {self.seq_len}: it was saved with other data or another "
                "seq_len."
            )
        self.epoch, self.position = state["epoch"], state["position"]

    def _epoch_order(self) -> np.ndarray:
        """Window numbers in the order of this epoch, int64 [num_sequences]."""
        if not self.shuffle:
            return np.arange(self.num_sequences)
        if self._order is None or self._order[0] != self.epoch:
            generator = np.random.default_rng([self.seed, self.epoch])
            self._order = self.epoch, generator.permutation(self.num_sequences)
        return self._order[1]

    def _gather(self, windows: np.ndarray) -> Batch:
        """This replica's part of the given windows; a number past the last window makes a row of padding."""
        share = self.batch_size // self.replicas
        mine = windows[self.rank * share : (self.rank + 1) * share]
        tokens = np.full((share, self.seq_len), self.eos_id, np.int64)
        targets = np.full((share, self.seq_len), IGNORED, np.int64)
        for row, window in enumerate(mine):
            span = self.tokens.array[window * self.seq_len : (window + 1) * self.seq_len + 1]
            length = max(len(span) - 1, 0)
            tokens[row, :length] = span[:-1]
            targets[row, :length] = span[1:]
        documents = np.cumsum(tokens == self.eos_id, axis=1, dtype=np.int32) if self.documents else None
        return Batch(tokens, targets, documents, self._num_valid(windows))

    def _num_valid(self, windows: np.ndarray) -> int:
        """Of all replicas together: every window is full but the last, and there is none after it."""
        first = windows * self.seq_len
        return int(np.clip(self.tokens.num_tokens - 1 - first, 0, self.seq_len).sum())
