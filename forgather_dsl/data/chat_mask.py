"""Which tokens of a conversation are trained, exactly: the mask of spans of characters on the ids of the whole text.

In: the text that a template wrote, its trained spans, ids with the characters of each. Out: what each token counts for.
Refused is what would be trained otherwise than it is used: a token over the border of a turn, a prompt that alone gives
other ids, a content that holds a special token.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import numpy as np

from forgather_dsl.data.templates import Conversation, Span
from forgather_dsl.data.tokenizers import Tokenizer
from forgather_dsl.errors import UserError

__all__ = ["Encoded", "Mask"]

MOST_BYTES = np.iinfo(np.uint16).max - 1  # that one token can be said to stand for
REMEMBERED = 4096  # ends of prompts, most of which are alike


class Encoded(NamedTuple):
    """One conversation, up to its last trained token."""

    ids: np.ndarray  # int64 [tokens]
    trained: np.ndarray  # int64 [tokens]: 0 for what is read only, else 1 + the bytes of text that the token stands for


class Mask:
    """The masks of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        added = tokenizer.loaded.backend.get_added_tokens_decoder().items()
        found = {number: token.content for number, token in added if token.special}
        longest_first = sorted({*found.values(), tokenizer.loaded.eos}, key=len, reverse=True)
        self._special = np.array(sorted(found), np.int64)
        self._anywhere = re.compile("|".join(map(re.escape, longest_first)))
        self._alone = functools.lru_cache(REMEMBERED)(lambda text: tuple(tokenizer.encode_templated([text])[0][0]))

    def refuse_special(self, conversation: Conversation) -> None:
        """Raises: UserError: a content holds what ends a turn, and would end it."""
        for number, message in enumerate(conversation.messages, 1):
            if found := self._anywhere.search(message["content"]):
                raise UserError(
                    f"{conversation.where}: message {number} holds {found[0]!r}, which is a token of its own, not text: "
                    "take it out of the data."
                )

    def encoded(
        self, where: str, text: str, spans: list[Span], numbers: list[int], offsets: list[tuple[int, int]]
    ) -> Encoded | None:
        """Ids, and what each counts for; None where nothing is trained but a first token, which nothing predicts.

        Raises: UserError: the border of a span is none between tokens.
        """
        ids, places = np.array(numbers, np.int64), np.array(offsets, np.int64).reshape(-1, 2)
        begins, ends = places[:, 0], places[:, 1]
        inside, special = np.zeros(len(ids), bool), np.isin(ids, self._special)
        for span in spans:
            across = (begins < span.start) & (ends > span.start) | (begins < span.stop) & (ends > span.stop)
            if across.any():
                raise UserError(_across(where, text, span, places[np.argmax(across)]))
            self._refuse_other_prompt(where, text, span.start, ids, places, special)
            inside |= (begins >= span.start) & (ends <= span.stop) & (ends > span.start)
        inside[:1] = False
        if not inside.any():
            return None
        upto = _utf8_lengths(text)[np.maximum.accumulate(ends)]  # several tokens may share a character
        stands_for = np.diff(upto, prepend=0)
        stands_for[special] = 0
        last = int(np.flatnonzero(inside)[-1]) + 1
        trained = np.where(inside, 1 + np.minimum(stands_for, MOST_BYTES), 0)
        return Encoded(ids[:last], trained[:last])

    def _refuse_other_prompt(
        self, where: str, text: str, start: int, ids: np.ndarray, places: np.ndarray, special: np.ndarray
    ) -> None:
        """A prompt is encoded without what follows it. Special tokens divide, so what is after the last one is compared."""
        before = np.flatnonzero(places[:, 1] <= start)
        marks = before[special[before]]
        first = int(marks[-1]) + 1 if len(marks) else 0
        tail = text[int(places[marks[-1], 1]) if len(marks) else 0 : start]
        if self._alone(tail) != tuple(ids[first : int(before[-1]) + 1 if len(before) else 0].tolist()):
            raise UserError(
                f"{where}: the prompt that ends with {tail[-40:]!r} has other tokens when the answer follows, so the model "
                "would not be asked as it was trained: use another template."
            )


def _utf8_lengths(text: str) -> np.ndarray:
    """Bytes before each character and at the end, int64 [len(text) + 1]."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    sizes = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(sizes)])


def _across(where: str, text: str, span: Span, place: np.ndarray) -> str:
    at = span.start if place[0] < span.start < place[1] else span.stop
    token, side = text[place[0] : place[1]], "begins" if at == span.start else "ends"
    return (
        f"{where}: where a turn of the assistant {side}, the tokenizer makes one token of {token!r} over the border, so the "
        "model would not be asked as it was trained: take white space off the ends of the content, or use another template."
    )
