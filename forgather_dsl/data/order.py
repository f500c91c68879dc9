"""Sequences of fixed shape in an order that depends on (seed, epoch) alone, resumable in O(1): the base of both loaders.

The state counts sequences, hence it outlives a change of batch size. A subclass says what a sequence is (`_fill`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from forgather_dsl.errors import UserError

IGNORED = -100  # the target that losses skip, torch's convention


@dataclass(frozen=True)
class Batch:
    """This replica's rows of one global batch."""

    tokens: np.ndarray  # int64 [batch, seq]
    targets: np.ndarray  # int64 [batch, seq]; IGNORED on padding, and on what is not trained
    documents: np.ndarray | None  # int32 [batch, seq]: equal within a row where attention may go
    num_valid: int  # targets of the whole global batch that are not IGNORED


class Sequences(ABC):
    """Endless batches (`next_batch`) or one ordered pass (`eval_batches`).

    `batch_size` counts the sequences of all replicas together; replica `rank` gets its consecutive
    `batch_size / replicas` rows of each batch.
    """

    def __init__(self, *, seq_len: int, batch_size: int, seed: int, shuffle: bool, rank: int, replicas: int) -> None:
        """Raises: UserError: a number that cannot be, or a batch that replicas cannot share evenly."""
        for name, value, least in (("seq_len", seq_len, 1), ("batch_size", batch_size, 1), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"{name} = {value}: write {least} or more.")
        if batch_size % replicas:
            fits = batch_size // replicas * replicas or replicas
            raise UserError(f"batch_size = {batch_size} does not divide by {replicas} replicas: write {fits}.")
        self.seq_len = seq_len
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.replicas = replicas
        self.num_sequences = 0  # in an epoch; the subclass counts them
        self.fingerprint = ""  # of the tokens, likewise
        self.epoch = 0
        self.position = 0  # sequences of this epoch that were given out, to all replicas together
        self._order: tuple[int, np.ndarray] | None = None

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Of text in the targets of an epoch, in UTF-8."""

    @property
    @abstractmethod
    def described(self) -> str:
        """What the sequences hold, for a banner; empty where there is nothing to say."""

    @property
    def epochs(self) -> float:
        """How often all of the data was given out."""
        return self.epoch + self.position / self.num_sequences

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
        """Every sequence once, in order; the last batch is filled up with rows of ignored targets."""
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
        """Numbers of sequences in the order of this epoch, int64 [num_sequences]."""
        if not self.shuffle:
            return np.arange(self.num_sequences)
        if self._order is None or self._order[0] != self.epoch:
            generator = np.random.default_rng([self.seed, self.epoch])
            self._order = self.epoch, generator.permutation(self.num_sequences)
        return self._order[1]

    def _gather(self, numbers: np.ndarray) -> Batch:
        """This replica's part of the given sequences; a number past the last one makes a row of padding."""
        share = self.batch_size // self.replicas
        mine = numbers[self.rank * share : (self.rank + 1) * share]
        return Batch(*self._fill(mine), self._num_valid(numbers))

    @abstractmethod
    def _fill(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """tokens, targets and documents of these rows."""

    @abstractmethod
    def _num_valid(self, numbers: np.ndarray) -> int:
        """Targets of these sequences together."""
