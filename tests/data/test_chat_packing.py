"""Packing loses and cuts nothing that fits, fills sequences well, and resumes at any point to the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.data import chat_tokens
from forgather_dsl.data.chat import Chat
from forgather_dsl.data.chat_tokens import ChatFile, tokenize_chat
from forgather_dsl.data.order import IGNORED
from forgather_dsl.data.packing import PackedLoader, best_fit
from forgather_dsl.data.tokenizers import Bytes
from forgather_dsl.errors import UserError

EOS = 0


def file_of(lengths: Any, asked: int = 1, too_long: str = "truncate") -> ChatFile:
    """Conversations of so many tokens, numbered through; the first `asked` of each are read only. One byte a token."""
    total = sum(lengths)
    ends = np.cumsum(lengths).astype(np.int64)
    trained = np.full(total, 2, np.uint16)
    for end, length in zip(ends, lengths):
        trained[end - length : end - length + asked] = 0
    array = np.arange(1, total + 1, dtype=np.uint32)
    counts = {"num_tokens": total, "num_trained": int((trained > 0).sum()), "num_bytes": int((trained > 0).sum())}
    more: dict[str, Any] = {"num_documents": len(lengths), "num_skipped": 0, "fingerprint": "x", "too_long": too_long}
    return ChatFile(Path(), array, trained, ends, **counts, **more)


def loader(file: ChatFile, **changes: Any) -> PackedLoader:
    options = {"seq_len": 16, "batch_size": 2, "seed": 0, "shuffle": True, "documents": True, "rank": 0, "replicas": 1}
    return PackedLoader(tokens=file, eos_id=EOS, **{**options, **changes})


@settings(deadline=None, max_examples=200)
@given(lengths=st.lists(st.integers(1, 20), max_size=60))
def test_best_fit_places_every_item_once_and_wastes_no_bin(lengths: list[int]) -> None:
    bins = best_fit(np.array(lengths, np.int64), 20)
    assert sorted(item for one in bins for item in one) == list(range(len(lengths)))
    loads = sorted(sum(lengths[item] for item in one) for one in bins)
    assert all(load <= 20 for load in loads)
    assert len(loads) < 2 or loads[0] + loads[1] > 20, "two bins would go into one"


def test_best_fit_takes_the_tightest_room() -> None:
    assert best_fit(np.array([6, 7, 3, 4]), 10) == [[1, 2], [0, 3]]
    with pytest.raises(ValueError, match="an item of 11 does not fit into 10"):
        best_fit(np.array([11]), 10)


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(2, 17), min_size=1, max_size=40), shuffle=st.booleans(), batch=st.integers(1, 5))
def test_every_trained_token_is_a_target_once_per_epoch(lengths: list[int], shuffle: bool, batch: int) -> None:
    file = file_of(lengths)
    data = loader(file, shuffle=shuffle, batch_size=batch)
    rows, valid = [], 0
    for part in data.eval_batches():
        valid += part.num_valid
        rows += [*zip(part.tokens, part.targets, part.documents)]  # type: ignore[arg-type]
    seen: list[int] = []
    for tokens, targets, documents in rows:
        counted = targets != IGNORED
        assert (targets[counted] == tokens[counted] + 1).all(), "the next token of the same conversation"
        assert (documents[counted] > 0).all()
        seen += targets[counted].tolist()
        for number in set(documents[documents > 0]):
            inside = tokens[documents == number]
            assert (np.diff(inside) == 1).all(), "a conversation in one piece"
    assert sorted(seen) == (np.flatnonzero(file.trained) + 1).tolist()
    assert valid == len(seen) == data.num_bytes
    drawn = [data.next_batch() for _ in range(3)]
    assert all(part.num_valid == (part.targets != IGNORED).sum() for part in drawn)


def test_a_pack_by_hand() -> None:
    data = loader(file_of([4, 6, 9]), seq_len=12, batch_size=1, shuffle=False)
    first, second = (data.next_batch() for _ in range(2))
    assert first.tokens.tolist() == [[11, 12, 13, 14, 15, 16, 17, 18, 1, 2, 3, EOS]]
    assert first.targets.tolist() == [[12, 13, 14, 15, 16, 17, 18, 19, 2, 3, 4, IGNORED]]
    assert first.documents is not None
    assert first.documents.tolist() == [[1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 0]]
    assert second.tokens.tolist() == [[5, 6, 7, 8, 9, *[EOS] * 7]]
    assert (data.epoch, data.epochs) == (1, 1.0)
    assert loader(file_of([4]), documents=False).next_batch().documents is None


def test_utilisation_is_told() -> None:
    data = loader(file_of([17, 9, 9], asked=5), seq_len=16)
    said = "3 conversations in 2 sequences; 100.0 % of tokens are text, 62.5 % trained"
    assert data.described == said


@pytest.mark.parametrize(
    ("too_long", "count", "targets", "said"),
    [
        ("truncate", 2, 16 + 3, "1 longer than 16 are truncated"),
        ("cut", 3, 34 + 3, "1 longer than 16 are cut"),
        ("drop", 1, 3, "1 longer than 16 are left out"),
    ],
)
def test_conversations_longer_than_a_sequence(too_long: str, count: int, targets: int, said: str) -> None:
    data = loader(file_of([35, 4], too_long=too_long), batch_size=1)
    assert len(data.pieces.start) == count + (too_long == "cut")
    assert sum(batch.num_valid for batch in data.eval_batches()) == targets == data.num_bytes
    assert said in data.described


def test_conversations_longer_than_a_sequence_can_be_refused() -> None:
    with pytest.raises(
        UserError, match="1 of 2 conversations are longer than seq_len = 16, the longest 34 tokens: write"
    ):
        loader(file_of([35, 4], too_long="refuse"))
    with pytest.raises(UserError, match="no conversation has something to train within seq_len = 16"):
        loader(file_of([35], asked=20))
    assert loader(file_of([35, 4], asked=3, too_long="cut")).next_batch().num_valid > 0


def test_resuming_gives_the_very_same_batches_whatever_the_batch_size() -> None:
    file = file_of([2 + (7 * i) % 15 for i in range(40)])
    straight = loader(file, batch_size=1)
    rows = [straight.next_batch() for _ in range(3 * straight.num_sequences)]
    for stop in range(0, len(rows) - 6, 5):
        first = loader(file, batch_size=1)
        for _ in range(stop):
            first.next_batch()
        second = loader(file, batch_size=3)
        second.load_state_dict(first.state_dict())
        batch = second.next_batch()
        assert np.array_equal(batch.tokens, np.concatenate([row.tokens for row in rows[stop : stop + 3]]))
        assert np.array_equal(batch.targets, np.concatenate([row.targets for row in rows[stop : stop + 3]]))
        assert batch.num_valid == sum(row.num_valid for row in rows[stop : stop + 3])


def test_replicas_share_each_global_batch_in_order() -> None:
    file = file_of([2 + (7 * i) % 15 for i in range(40)])
    whole, parts = loader(file, batch_size=4), [loader(file, batch_size=4, rank=rank, replicas=2) for rank in (0, 1)]
    for _ in range(9):
        batch, shares = whole.next_batch(), [part.next_batch() for part in parts]
        assert np.array_equal(batch.targets, np.concatenate([share.targets for share in shares]))
        assert [share.num_valid for share in shares] == [batch.num_valid] * 2


# ---- the cache


def chats(path: Path, **changes: Any) -> Chat:
    options: dict[str, Any] = {
        "paths": (str(path),),
        "dataset": None,
        "name": None,
        "subset_split": "train",
        "streaming": False,
        "shape": "auto",
        "template": "plain",
        "system": None,
        "train_on": "assistant",
        "too_long": "truncate",
        "bad": "refuse",
        "split": "all",
        "held_out": 0.0,
    }
    return Chat(**options | changes)


def test_the_cache_holds_ids_and_mask_and_is_made_again_when_anything_changed(tmp_path: Path, monkeypatch: Any) -> None:
    path, tokenizer = tmp_path / "a.jsonl", Bytes(vocab_size=257)
    path.write_text("".join(json.dumps({"prompt": f"{i}?", "completion": f"it is {i}"}) + "\n" for i in range(30)))
    first = tokenize_chat(chats(path), tokenizer)
    assert isinstance(first.array, np.memmap)
    assert isinstance(first.trained, np.memmap)
    assert first.num_documents == 30
    monkeypatch.setattr(chat_tokens, "encoded", None)  # nothing is encoded again
    again = tokenize_chat(chats(path, too_long="cut"), tokenizer)
    assert (again.fingerprint, again.too_long) == (first.fingerprint, "cut")
    monkeypatch.undo()
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    first = tokenize_chat(chats(path), tokenizer)
    prints, trained = {first.fingerprint}, first.trained.copy()
    for changes in (
        {"train_on": "all"},
        {"template": "chatml"},
        {"system": "Be brief."},
        {"split": "train", "held_out": 0.3},
    ):
        prints.add(tokenize_chat(chats(path, **changes), tokenizer).fingerprint)
    assert len(prints) == 5
    file = next(p for p in (tmp_path / "cache" / "chats").glob("*/trained.bin") if p.parent == first.folder)
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    assert np.array_equal(tokenize_chat(chats(path), tokenizer).trained, trained), "a damaged mask is made again"
    (first.folder / "index.bin").touch()  # touched and sound: read after a look at its hash
    monkeypatch.setattr(chat_tokens, "encoded", None)
    assert tokenize_chat(chats(path), tokenizer).fingerprint == first.fingerprint
