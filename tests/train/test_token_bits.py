"""Two tokenizations of one text, and what can be said of the difference between their bits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from forgather_dsl import UserError
from forgather_dsl.runs.token_bits import Pieces, pieces_of
from forgather_dsl.runs.token_comparison import compare_pieces

TEXT = "naïve cats sat; naïve dogs ran."


class Chunks:
    """A tokenizer that cuts every few characters."""

    def __init__(self, size: int) -> None:
        self.size = size

    def encode_ends(self, texts: Sequence[str]) -> list[tuple[list[int], list[int]]]:
        ends = [[*range(self.size, len(text), self.size), len(text)] for text in texts]
        return [([7] * len(found), found) for found in ends]


def stream(documents: Sequence[Sequence[str]], tokenizer: Any) -> Any:
    ids = [0]
    for pieces in documents:
        ids += [i for own, _ in tokenizer.encode_ends(pieces) for i in own] + [0]
    return SimpleNamespace(array=np.array(ids, np.uint16))


def pieces(documents: Sequence[Sequence[str]], sizes: tuple[int, int], seed: int = 0) -> tuple[list[Pieces], list[Any]]:
    source = SimpleNamespace(pieces=lambda: (iter(document) for document in documents))
    tokenizers = tuple(Chunks(size) for size in sizes)
    tokens = tuple(stream(documents, tokenizer) for tokenizer in tokenizers)
    draw = np.random.default_rng(seed)
    losses = [draw.exponential(2.0, len(found.array) - 1).astype(np.float32) for found in tokens]
    return list(
        pieces_of(source, (tokenizers[0], tokenizers[1]), (tokens[0], tokens[1]), (losses[0], losses[1]))
    ), losses


@pytest.mark.parametrize(("sizes", "count"), [((2, 2), 16), ((2, 3), 6), ((4, 2), 8), ((40, 1), 1)])
def test_no_bit_is_lost_between_two_tokenizations(sizes: tuple[int, int], count: int) -> None:
    found, losses = pieces([[TEXT], ["x" * 9, "yz"]], sizes)
    first = found[0]
    assert len(first.difference) == count + 1  # and the end of the document
    assert "".join(first.piece(i) for i in range(count)) == TEXT
    assert first.piece(count) == ""
    assert first.num_bytes == len(TEXT.encode())
    for side in (0, 1):
        total = sum(float(document.bits[side].sum()) for document in found)
        assert total == pytest.approx(float(losses[side].astype(np.float64).sum()) / math.log(2), rel=1e-12)
    assert found[1].text == "x" * 9 + "yz"  # encoded in two pieces, one document


def test_a_text_that_has_changed_is_told() -> None:
    tokenizer = Chunks(2)
    tokens = stream([["before"]], tokenizer)
    tokens.array[1] = 3
    source = SimpleNamespace(pieces=lambda: iter([iter(["before"])]))
    losses = np.ones(len(tokens.array) - 1, np.float32)
    with pytest.raises(UserError, match="has changed since it was tokenised"):
        list(pieces_of(source, (tokenizer, tokenizer), (tokens, tokens), (losses, losses)))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Documents of random length, each with an offset of its own around a true difference of 0.1 bits per byte."""
    draw, held = np.random.default_rng(3), 0
    for _ in range(300):
        documents = []
        for size in draw.integers(20, 200, 30):
            noise = draw.normal(0, 0.3) * size  # of the document as a whole
            bits = np.full(3, (0.1 * size + noise) / 3)
            cuts = np.array([0, 5, int(size)])
            documents.append(Pieces("a" * int(size), cuts, (np.zeros(3), bits), int(size)))
        found = compare_pieces(documents, 2)
        assert found.half is not None
        assert found.units == "30 documents"
        held += abs(found.difference - 0.1) <= found.half
    assert 0.91 <= held / 300 <= 0.98


def test_places_and_words_are_those_that_differ_most() -> None:
    text = "the cat, the dog"
    cuts = np.array([0, 3, 4, 7, 9, 12, 13, 16])  # the| |cat|, |the| |dog
    a = np.array([1.0, 0, 5, 0, 1, 0, 2, 0.5])
    b = np.array([2.0, 0, 1, 0, 2, 0, 2, 0.0])
    found = compare_pieces([Pieces(text, cuts, (a, b), len(text))] * 2, 3)
    assert found.bits_per_byte == (9.5 / 16, 7.0 / 16)
    assert [place.text for place in found.places[0]] == ["the", "the", "the"]
    best = found.places[1][0]
    assert (best.before, best.text, best.after, best.bits) == ("the ", "cat", ", the dog", (5.0, 1.0))
    assert [(word.text, word.times, word.difference) for word in found.words[0]] == [("the", 4, 4.0)]
    assert [(word.text, word.times, word.difference) for word in found.words[1]] == [("cat", 2, -8.0), ("", 2, -1.0)]
    assert found.better == (0.25, 0.25)
    assert "blocks of text, for documents are few" in found.units
    data = found.as_data()
    assert data["interval"][0] <= data["difference"] <= data["interval"][1]
