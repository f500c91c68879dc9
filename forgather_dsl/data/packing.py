"""Conversations packed into sequences: best fit, longest first, none cut unless it is longer than a sequence.

Packed once, from the lengths alone, so the same on every rank, at every start and in every epoch; the order of the
sequences is drawn anew each epoch. Positions go on through a sequence: rotary embeddings see distances only, and with
`documents` attention does not leave a conversation.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from forgather_dsl.data.chat_tokens import ChatFile
from forgather_dsl.data.order import IGNORED, Sequences
from forgather_dsl.errors import UserError

__all__ = ["TOO_LONG", "PackedLoader", "best_fit"]

TOO_LONG = ("truncate", "cut", "drop", "refuse")


class Pieces(NamedTuple):
    """What is packed: conversations, or parts of long ones. A piece of n positions has n tokens read and n targets."""

    start: np.ndarray  # int64: the first token
    length: np.ndarray  # int64: positions
    trained: np.ndarray  # int64: targets that are not ignored

    def take(self, chosen: np.ndarray) -> Pieces:
        """Some of them."""
        return Pieces(*(values[chosen] for values in self))


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Numbers of items, bin by bin: longest first, each where the least room is left (Johnson 1973).

    One step per item: the rooms that some bin has left are the bits of one number. Raises: ValueError: an item too long.
    """
    if len(lengths) and int(lengths.max()) > capacity:
        raise ValueError(f"an item of {int(lengths.max())} does not fit into {capacity}")
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r: some bin has room r
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            place = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, place = capacity, len(bins)
            bins.append([])
        bins[place].append(item)
        left = room - length
        by_room[left].append(place)
        rooms |= 1 << left
    return bins


class PackedLoader(Sequences):
    """Packed sequences of a `ChatFile`; with `documents` each position has the number of its conversation in the row."""

    def __init__(
        self,
        *,
        tokens: ChatFile,
        seq_len: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        eos_id: int,
        documents: bool,
        rank: int,
        replicas: int,
    ) -> None:
        """Raises: UserError: conversations too long where that is refused, or none is left."""
        super().__init__(
            seq_len=seq_len, batch_size=batch_size, seed=seed, shuffle=shuffle, rank=rank, replicas=replicas
        )
        self.tokens, self.eos_id, self.documents = tokens, eos_id, documents
        self.fingerprint = tokens.fingerprint
        begins = np.concatenate([[0], tokens.ends[:-1]])
        lengths = tokens.ends - begins - 1  # the last token is a target only
        self.num_long = int((lengths > seq_len).sum())
        if self.num_long and tokens.too_long == "refuse":
            raise UserError(
                f"{self.num_long} of {tokens.num_documents} conversations are longer than seq_len = {seq_len}, the longest "
                f"{int(lengths.max())} tokens: write seq_len = {int(lengths.max())}, or too_long = 'truncate', 'cut' or 'drop'."
            )
        pieces = _pieces(tokens, begins, lengths, seq_len)
        self.pieces = pieces.take(pieces.trained > 0)
        if not len(self.pieces.start):
            raise UserError(f"no conversation has something to train within seq_len = {seq_len}: write a longer one.")
        self.packs = best_fit(self.pieces.length, seq_len)
        self.num_sequences = len(self.packs)
        self._valid = np.array([int(self.pieces.trained[pack].sum()) for pack in self.packs], np.int64)

    @property
    def num_bytes(self) -> int:
        """Of the trained text in these sequences; tokens that are no text, such as the end of a turn, have none."""
        counted = (
            self.tokens.trained[start + 1 : start + 1 + length].astype(np.int64)
            for start, length in zip(self.pieces.start, self.pieces.length)
        )
        return sum(int(np.maximum(values - 1, 0).sum()) for values in counted)

    @property
    def described(self) -> str:
        """How full the sequences are, and what became of what does not fit."""
        places, text = self.num_sequences * self.seq_len, int(self.pieces.length.sum())
        told = [
            f"{self.tokens.num_documents:,} conversations in {self.num_sequences:,} sequences",
            f"{100 * text / places:.1f} % of tokens are text, {100 * int(self._valid.sum()) / places:.1f} % trained",
        ]
        if self.num_long:
            done = {"truncate": "truncated", "cut": "cut", "drop": "left out"}[self.tokens.too_long]
            told.append(f"{self.num_long:,} longer than {self.seq_len} are {done}")
        if self.tokens.num_skipped:
            told.append(f"{self.tokens.num_skipped:,} bad records are left out")
        return "; ".join(told)

    def _fill(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        tokens = np.full((len(numbers), self.seq_len), self.eos_id, np.int64)
        targets = np.full((len(numbers), self.seq_len), IGNORED, np.int64)
        documents = np.zeros((len(numbers), self.seq_len), np.int32)  # 0: padding
        for row, number in enumerate(numbers):
            at = 0
            for count, piece in enumerate(self.packs[number] if number < self.num_sequences else (), 1):
                start, length = int(self.pieces.start[piece]), int(self.pieces.length[piece])
                here, after = slice(at, at + length), slice(start + 1, start + 1 + length)
                tokens[row, here] = self.tokens.array[start : start + length]
                counted = self.tokens.trained[after] > 0
                targets[row, here][counted] = self.tokens.array[after][counted]
                documents[row, here] = count
                at += length
        return tokens, targets, documents if self.documents else None

    def _num_valid(self, numbers: np.ndarray) -> int:
        return int(self._valid[numbers[numbers < self.num_sequences]].sum())


def _pieces(tokens: ChatFile, begins: np.ndarray, lengths: np.ndarray, seq_len: int) -> Pieces:
    """What is left of each conversation, by `too_long`."""
    if tokens.too_long == "cut":
        counts = -(-lengths // seq_len)
        inside = np.arange(counts.sum()) - np.repeat(
            np.cumsum(counts) - counts, counts
        )  # 0, 1, .. in each conversation
        starts = np.repeat(begins, counts) + inside * seq_len
        lengths = np.minimum(np.repeat(lengths, counts) - inside * seq_len, seq_len)
    elif tokens.too_long == "drop":
        fits = lengths <= seq_len
        starts, lengths = begins[fits], lengths[fits]
    else:
        starts, lengths = begins, np.minimum(lengths, seq_len)
    trained = [np.count_nonzero(tokens.trained[s + 1 : s + 1 + n]) for s, n in zip(starts.tolist(), lengths.tolist())]
    return Pieces(starts, lengths, np.array(trained, np.int64))
