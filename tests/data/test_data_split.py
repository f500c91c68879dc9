"""A document is on one side of the split, whatever its place; a few documents are cut instead. Nothing gets lost."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.data import documents
from forgather_dsl.errors import UserError

DOCUMENTS = [f"document {i}\n" for i in range(400)]


def sides(source):
    return list(source.documents()), list(source.with_split("held_out").documents())


def test_held_out_is_decided_by_the_hash_of_the_text(texts):
    train, held_out = sides(texts(DOCUMENTS, "train", 0.25))
    expected = [text for text in DOCUMENTS if int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) < 2**64 // 4]
    assert held_out == expected
    assert train == [text for text in DOCUMENTS if text not in expected]
    assert 60 < len(held_out) < 140


def test_the_hash_is_that_of_the_whole_text_not_of_a_piece(texts, monkeypatch):
    long = [f"{'the same beginning ' * 5}{i}{' the same end' * 5}" for i in range(100)]
    whole = sides(texts(long, "train", 0.25))
    monkeypatch.setattr(documents, "PIECE", 20)
    assert sides(texts(long, "train", 0.25)) == whole
    assert 10 < len(whole[1]) < 40


def test_order_and_duplicates_do_not_change_a_documents_side(texts):
    train, held_out = sides(texts([*reversed(DOCUMENTS), *DOCUMENTS], "train", 0.25))
    assert not set(train) & set(held_out)
    assert (set(train), set(held_out)) == tuple(map(set, sides(texts(DOCUMENTS, "train", 0.25))))


def test_a_larger_fraction_only_moves_documents_out_of_train(texts):
    _, few = sides(texts(DOCUMENTS, "train", 0.1))
    _, more = sides(texts(DOCUMENTS, "train", 0.3))
    assert set(few) < set(more)


def test_nineteen_documents_are_cut_and_twenty_are_divided(texts):
    lines = "".join(f"{i:03}\n" for i in range(100))
    train, held_out = sides(texts([f"{i}\n{lines}" for i in range(19)], "train", 0.1))
    assert (len(train), len(held_out)) == (19, 19)
    train, held_out = sides(texts([f"{i}\n{lines}" for i in range(20)], "train", 0.1))
    assert len(train) + len(held_out) == 20


def test_a_document_is_cut_at_the_first_line_end_after_the_point(texts):
    assert sides(texts(["aaaa\nbbbb\ncccc\ndddd\n"], "train", 0.4)) == (["aaaa\nbbbb\ncccc\n"], ["dddd\n"])
    assert sides(texts(["aaaa\nbbbb\ncccc\ndddd\n"], "train", 0.5)) == (["aaaa\nbbbb\n"], ["cccc\ndddd\n"])


def test_one_line_is_cut_within(texts):
    assert sides(texts(["x" * 100], "train", 0.1)) == (["x" * 90], ["x" * 10])
    assert sides(texts(["a\n" + "x" * 98 + "\n"], "train", 0.1)) == (["a\n" + "x" * 89], ["x" * 9 + "\n"])


@settings(deadline=None, max_examples=200)
@given(
    text=st.text(st.sampled_from("ab\n é"), min_size=1, max_size=60),
    held_out=st.floats(0.01, 0.99),
    piece=st.integers(1, 9),
)
def test_both_sides_of_a_cut_make_the_document_whatever_the_pieces(texts, text, held_out, piece):
    whole = sides(texts([text], "train", held_out))
    assert "".join(whole[0] + whole[1]) == text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents, "PIECE", piece)
        assert sides(texts([text], "train", held_out)) == whole
        assert all(len(part) <= piece for part in documents.slices(text))
        assert "".join(documents.slices(text)) == text


def test_pieces_end_at_line_ends(monkeypatch):
    monkeypatch.setattr(documents, "PIECE", 10)
    assert list(documents.slices("one\ntwo\nthree\n" + "x" * 25)) == [
        "one\ntwo\n",
        "three\n",
        "x" * 10,
        "x" * 10,
        "xxxxx",
    ]


def test_all_is_both_sides(texts):
    assert list(texts(DOCUMENTS, "all", 0.25).documents()) == DOCUMENTS
    assert list(texts(DOCUMENTS, "train", 0.0).documents()) == DOCUMENTS


@pytest.mark.parametrize(
    ("split", "held_out", "message"),
    [
        ("eval", 0.1, "split='eval': write one of 'train', 'held_out', 'all'."),
        ("train", 5, "held_out=5 is a fraction of the documents: write 0.05 for one in twenty."),
        ("held_out", 0.0, "split='held_out' with held_out=0 holds nothing: write held_out=0.05, or split='all'."),
    ],
)
def test_a_bad_split_says_what_to_write(texts, split, held_out, message):
    with pytest.raises(UserError) as caught:
        texts(DOCUMENTS, split, held_out)
    assert str(caught.value) == message
