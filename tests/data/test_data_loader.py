"""Every token is a target exactly once per epoch, in an order that seed and epoch give, on any number of replicas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.data.loader import IGNORED, Loader
from forgather_dsl.errors import UserError

EOS = 0


def loader(tokens, **changes) -> Loader:
    options = {"seq_len": 4, "batch_size": 2, "seed": 0, "shuffle": True, "documents": False, "rank": 0, "replicas": 1}
    return Loader(tokens=tokens, eos_id=EOS, **{**options, **changes})


def sequence(count):
    """0 .. count-1: each id names its place in the stream."""
    return list(range(count))


def rows(batches):
    return [row for batch in batches for row in zip(batch.tokens.tolist(), batch.targets.tolist())]


def same(one, other) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("tokens", "targets", "documents"))


sizes = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 7)).filter(lambda s: s[1] <= s[0])


@settings(deadline=None, max_examples=300)
@given(sizes=sizes, shuffle=st.booleans(), seed=st.integers(0, 3), skipped=st.integers(0, 2))
def test_every_token_is_a_target_once_per_epoch(stream, sizes, shuffle, seed, skipped):
    num_targets, seq_len, batch_size = sizes
    data = loader(stream(sequence(num_targets + 1)), seq_len=seq_len, batch_size=batch_size, seed=seed, shuffle=shuffle)
    drawn = []
    while len(drawn) < (skipped + 1) * data.num_sequences:
        drawn += rows([data.next_batch()])
    drawn = drawn[skipped * data.num_sequences : (skipped + 1) * data.num_sequences]
    seen = []
    for inputs, targets in drawn:
        for token, target in zip(inputs, targets):
            if target != IGNORED:
                assert target == token + 1  # it is the next token of the stream
                seen.append(target)
    assert sorted(seen) == list(range(1, num_targets + 1))


@settings(deadline=None, max_examples=100)
@given(sizes=sizes)
def test_evaluation_goes_through_the_stream_once_in_order_with_constant_shapes(stream, sizes):
    num_targets, seq_len, batch_size = sizes
    data = loader(stream(sequence(num_targets + 1)), seq_len=seq_len, batch_size=batch_size, seed=5)
    batches = list(data.eval_batches())
    assert {batch.tokens.shape for batch in batches} == {(batch_size, seq_len)}
    assert {batch.targets.shape for batch in batches} == {(batch_size, seq_len)}
    targets = np.concatenate([batch.targets.ravel() for batch in batches])
    assert targets[targets != IGNORED].tolist() == list(range(1, num_targets + 1))
    assert data.state_dict() == {"epoch": 0, "position": 0}


def test_a_batch_is_int64_windows_and_their_next_tokens(stream):
    batch = loader(stream([0, 5, 6, 7, 8, 9, 0]), shuffle=False, documents=True).next_batch()
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    assert batch.tokens.tolist() == [[0, 5, 6, 7], [8, 9, EOS, EOS]]
    assert batch.targets.tolist() == [[5, 6, 7, 8], [9, 0, IGNORED, IGNORED]]


def test_without_shuffling_every_epoch_goes_through_the_stream_in_order(stream):
    data = loader(stream(sequence(81)), shuffle=False, batch_size=20)
    for _ in range(2):
        assert data.next_batch().tokens.ravel().tolist() == sequence(80)


def test_documents_change_at_the_boundary_that_begins_them(stream):
    ids = [0, 5, 6, 0, 7, 8, 9, 9, 0, 5, 0]
    batch = loader(stream(ids), shuffle=False, documents=True, seq_len=5).next_batch()
    assert batch.documents is not None
    assert batch.documents.dtype == np.int32
    assert batch.tokens.tolist() == [[0, 5, 6, 0, 7], [8, 9, 9, 0, 5]]
    assert batch.documents.tolist() == [[1, 1, 1, 2, 2], [0, 0, 0, 1, 1]]
    assert loader(stream(ids)).next_batch().documents is None


def test_the_seed_decides_the_order(stream):
    tokens = stream(sequence(200))
    first, again, other = (rows([loader(tokens, seed=seed, batch_size=50).next_batch()]) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert sorted(first) == sorted(other)


def test_each_epoch_has_its_own_order_and_the_next_begins_within_a_batch(stream):
    data = loader(stream(sequence(81)), batch_size=15)  # 20 sequences
    drawn = rows([data.next_batch(), data.next_batch()])
    assert data.epoch == 1
    assert data.state_dict() == {"epoch": 1, "position": 10}
    drawn += rows([data.next_batch(), data.next_batch()])
    epochs = [drawn[start : start + 20] for start in (0, 20, 40)]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert data.state_dict() == {"epoch": 3, "position": 0}


def test_a_batch_may_be_several_epochs(stream):
    data = loader(stream(sequence(9)), batch_size=7)  # 2 sequences
    assert len(rows([data.next_batch()])) == 7
    assert data.state_dict() == {"epoch": 3, "position": 1}


@settings(deadline=None, max_examples=200)
@given(
    num_targets=st.integers(9, 60),
    batch_sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    later=st.integers(1, 9),
    shuffle=st.booleans(),
)
def test_resuming_equals_going_on_whatever_the_batch_sizes(stream, num_targets, batch_sizes, later, shuffle):
    """The same sequences in the same order, over epoch ends, though the batch size changes at every resume."""
    tokens = stream(sequence(num_targets + 1))
    drawn, state = [], {"epoch": 0, "position": 0}
    for batch_size in [*batch_sizes, later]:
        data = loader(tokens, batch_size=batch_size, shuffle=shuffle, seed=3)
        data.load_state_dict(state)
        drawn += rows([data.next_batch(), data.next_batch()])
        state = data.state_dict()
    uninterrupted = loader(tokens, batch_size=1, shuffle=shuffle, seed=3)
    assert drawn == rows(uninterrupted.next_batch() for _ in drawn)
    assert state == uninterrupted.state_dict()


def test_resuming_gives_the_very_same_batches(stream):
    tokens = stream([0, *range(1, 60), 0, *range(60, 90), 0])
    straight = loader(tokens, documents=True, batch_size=5)
    batches = [straight.next_batch() for _ in range(12)]
    for stop in range(12):
        first = loader(tokens, documents=True, batch_size=5)
        for _ in range(stop):
            first.next_batch()
        second = loader(tokens, documents=True, batch_size=5)
        second.load_state_dict(first.state_dict())
        assert all(same(second.next_batch(), batch) for batch in batches[stop:])


@pytest.mark.parametrize("replicas", [1, 2, 3, 6])
def test_replicas_share_each_global_batch_in_order(stream, replicas):
    tokens = stream([0, *range(1, 50), 0])
    whole = loader(tokens, batch_size=6, documents=True)
    parts = [loader(tokens, batch_size=6, documents=True, rank=rank, replicas=replicas) for rank in range(replicas)]
    pairs = [(whole.next_batch(), [part.next_batch() for part in parts]) for _ in range(7)]
    pairs += list(zip(whole.eval_batches(), map(list, zip(*(part.eval_batches() for part in parts)))))
    assert len(pairs) > 9
    for batch, shares in pairs:
        for name in ("tokens", "targets", "documents"):
            assert np.array_equal(np.concatenate([getattr(share, name) for share in shares]), getattr(batch, name))
    assert all(part.state_dict() == whole.state_dict() for part in parts)


def test_a_sequence_longer_than_the_data_is_told_with_both_numbers(stream):
    assert loader(stream(sequence(9)), seq_len=8).num_sequences == 1
    with pytest.raises(UserError) as caught:
        loader(stream(sequence(9)), seq_len=9)
    assert str(caught.value).startswith("seq_len = 9, but the data has 8 tokens to predict: write seq_len = 8 or less")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 7, "replicas": 2}, "batch_size = 7 does not divide by 2 replicas: write 6."),
        ({"batch_size": 1, "replicas": 2}, "batch_size = 1 does not divide by 2 replicas: write 2."),
        ({"batch_size": 0}, "batch_size = 0: write 1 or more."),
        ({"seq_len": 0}, "seq_len = 0: write 1 or more."),
        ({"seed": -1}, "seed = -1: write 0 or more."),
    ],
)
def test_numbers_that_cannot_work_are_refused(stream, changes, message):
    with pytest.raises(UserError) as caught:
        loader(stream(sequence(50)), **changes)
    assert str(caught.value) == message


def test_a_position_of_other_data_is_refused(stream):
    data = loader(stream(sequence(50)))
    with pytest.raises(UserError, match="data position 13 of epoch 2 is not in this data, which has 13 sequences"):
        data.load_state_dict({"epoch": 2, "position": 13})
    assert data.state_dict() == {"epoch": 0, "position": 0}
