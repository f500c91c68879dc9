"""Documents and how they are divided: `Source`, the base of every source, and the train / held-out split.

A document is read as pieces (text cut at line ends, 256 Ki characters each), so a file larger than memory passes
through. The side of a document follows from the hash of its text: neither its place nor its duplicates matter.
In: a subclass's `all_documents`. Out: the documents of one split.
"""

from __future__ import annotations

import copy
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Any, Self

from forgather_dsl.errors import UserError

PIECE = 1 << 18  # characters; small enough that one long file still keeps every encoder thread busy
FEW = 20  # documents; with fewer, a split by document is too coarse and each document is cut instead
SPLITS = ("train", "held_out", "all")

Document = Callable[[], Iterator[str]]
"""A document: each call reads it anew, as pieces."""


class Source(ABC):
    """Where text comes from. A subclass gives `all_documents`, `check`, `identity` and `__str__`."""

    def __init__(self, *, split: str, held_out: float) -> None:
        """Raises: UserError: an unknown split, or a fraction outside 0 <= held_out < 1."""
        if split not in SPLITS:
            raise UserError(f"split={split!r}: write one of {', '.join(map(repr, SPLITS))}.")
        if not 0 <= held_out < 1:
            raise UserError(f"held_out={held_out!r} is a fraction of the documents: write 0.05 for one in twenty.")
        if split == "held_out" and held_out == 0:
            raise UserError("split='held_out' with held_out=0 holds nothing: write held_out=0.05, or split='all'.")
        self.split = split
        self.held_out = held_out

    @abstractmethod
    def all_documents(self) -> Iterator[Document]:
        """Every document, of both splits, in a fixed order."""

    @abstractmethod
    def check(self) -> None:
        """Look at the beginning of the data, without reading it all. Raises: UserError: naming every bad input."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the text depends on, as JSON: parameters and files. Two equal identities mean the same text."""

    def pieces(self) -> Iterator[Iterator[str]]:
        """The documents of this split, each as its pieces; a document must be consumed before the next is asked for."""
        yield from divide(self.all_documents(), self.split, self.held_out)

    def documents(self) -> Iterator[str]:
        """The documents of this split, whole."""
        for pieces in self.pieces():
            yield "".join(pieces)

    def with_split(self, split: str) -> Self:
        """The same source, another side of its division."""
        other = copy.copy(self)
        Source.__init__(other, split=split, held_out=self.held_out)
        return other

    def described_split(self) -> str:
        """The split in words, for a banner."""
        share = {"train": 1 - self.held_out, "held_out": self.held_out, "all": 1.0}[self.split]
        return f"{self.split.replace('_', ' ')} {share:.3g}" if share < 1 else "all of it"


def in_memory(text: str) -> Document:
    """A document that is already here."""
    return lambda: slices(text)


def slices(text: str) -> Iterator[str]:
    """The text in pieces of at most `PIECE` characters, cut after a line end where there is one."""
    start = 0
    while len(text) - start > PIECE:
        stop = text.rfind("\n", start, start + PIECE) + 1 or start + PIECE
        yield text[start:stop]
        start = stop
    if start < len(text):
        yield text[start:]


def divide(documents: Iterator[Document], split: str, held_out: float) -> Iterator[Iterator[str]]:
    """One side of the documents, each as pieces.

    A document is held out when the hash of its text, read as a number in [0, 1), is below `held_out`. With fewer
    than `FEW` documents the last part of each is held out instead.
    """
    if split == "all" or held_out == 0:
        yield from (document() for document in documents)
        return
    first = list(islice(documents, FEW))
    if len(first) < FEW:
        for document in first:
            cut = cut_point(document, held_out)
            yield between(document, 0, cut) if split == "train" else between(document, cut, None)
        return
    for document in chain(first, documents):
        if (hash_fraction(document) < held_out) == (split == "held_out"):
            yield document()


def hash_fraction(document: Document) -> float:
    """The document's SHA-256 as a number in [0, 1)."""
    digest = hashlib.sha256()
    for piece in document():
        digest.update(piece.encode())
    return int.from_bytes(digest.digest()[:8]) / 2**64


def cut_point(document: Document, held_out: float) -> int:
    """Where the held-out part starts, in characters: after the line in which the last `held_out` fraction begins.

    If that line is the last one, the cut goes through it: a text of one line has two sides too.
    """
    length = sum(map(len, document()))
    point = length - int(length * held_out)
    position = 0
    for piece in document():
        end = piece.find("\n", max(point - position - 1, 0)) + 1  # a line that ends at the point itself counts
        if end and position + end < length:
            return position + end
        position += len(piece)
    return point


def between(document: Document, start: int, stop: int | None) -> Iterator[str]:
    """The pieces of a document from character `start` up to `stop` (None: its end)."""
    position = 0
    for piece in document():
        part = piece[max(start - position, 0) : None if stop is None else max(stop - position, 0)]
        if part:
            yield part
        position += len(piece)
        if stop is not None and position >= stop:
            return
