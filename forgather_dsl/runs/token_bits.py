"""What two models pay for each piece of the same text: bits, on the smallest pieces that the tokens of both divide into.

In: for each model the loss of every token, and the text. Out: per document, cuts that both tokenizations have, and the bits of
either model between them. With one tokenizer pieces are tokens; with two, the sums over a piece compare exactly, and nothing is
spread over bytes by guess. The prediction of a document's end is a piece without text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..errors import UserError

__all__ = ["Pieces", "pieces_of"]


class Pieces(NamedTuple):
    """A document. Piece i is text[cuts[i] : cuts[i + 1]]; the last one is the end of the document, which has no text."""

    text: str
    cuts: np.ndarray  # int64 [n], characters, from 0 to the length of the text
    bits: tuple[np.ndarray, np.ndarray]  # float64 [n] each: of either model
    num_bytes: int  # of the text in UTF-8

    @property
    def difference(self) -> np.ndarray:
        """Bits [n]: of the second model less the first; where it is negative the second is better."""
        return self.bits[1] - self.bits[0]

    def piece(self, number: int) -> str:
        """Its text; empty for the end."""
        return self.text[self.cuts[number] : self.cuts[number + 1]] if number + 1 < len(self.cuts) else ""


def pieces_of(
    source: Any, tokenizers: tuple[Any, Any], tokens: tuple[Any, Any], losses: tuple[Any, Any]
) -> Iterator[Pieces]:
    """The documents of a built source in order. `tokens` are token files, `losses` nats of each target.

    Raises UserError when the text is no longer that of the token files.
    """
    streams = tuple(_Stream(*parts) for parts in zip(tokenizers, tokens, losses))
    for pieces in source.pieces():
        texts = list(pieces)
        if not texts:  # nor has it a boundary
            continue
        taken, text = [stream.document(texts) for stream in streams], "".join(texts)
        cuts = np.intersect1d(taken[0].ends, taken[1].ends)
        bits = tuple(_between(one, cuts) for one in taken)
        yield Pieces(text, np.concatenate([[0], cuts]), (bits[0], bits[1]), len(text.encode()))


class _Taken(NamedTuple):
    """Of one model: where its tokens end, characters; their bits; those of the end of the document."""

    ends: np.ndarray
    bits: np.ndarray
    last: float


def _between(taken: _Taken, cuts: np.ndarray) -> np.ndarray:
    place = np.searchsorted(cuts, taken.ends)
    return np.append(np.bincount(place, weights=taken.bits, minlength=len(cuts)), taken.last)


class _Stream:
    """Walks through a token file beside its text."""

    def __init__(self, tokenizer: Any, tokens: Any, losses: np.ndarray) -> None:
        self.tokenizer, self.array, self.at = tokenizer, tokens.array, 1  # the first token is a boundary, and no target
        self.bits = losses.astype(np.float64) / math.log(2)

    def document(self, texts: list[str]) -> _Taken:
        """The next one, given as the pieces in which it was encoded."""
        ends: list[int] = []
        ids: list[int] = []
        before = 0
        for text, (own_ids, own_ends) in zip(texts, self.tokenizer.encode_ends(texts)):
            ids += own_ids
            ends += [before + end for end in own_ends]
            before += len(text)
            if own_ends:
                ends[-1] = before  # what a tokenizer leaves out at the end goes with its last token
        start, stop = self.at, self.at + len(ids)
        if not np.array_equal(self.array[start:stop], ids):
            raise UserError("the text has changed since it was tokenised; evaluate again")
        self.at = stop + 1
        bits = self.bits[start - 1 : stop]  # the loss of token i stands at i - 1; the last is that of the boundary
        return _Taken(np.maximum.accumulate(np.array(ends, np.int64)), bits[:-1], float(bits[-1]))
