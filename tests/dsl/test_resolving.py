"""What a field's value is: who provides it, when it is computed, and what happens when it cannot be."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import attrs
import pytest

from forgather_dsl.dsl import (
    REQUIRED,
    ConfigError,
    CycleError,
    Lazy,
    MissingValue,
    UnknownField,
    check,
    derived,
    override,
    patch,
    replace,
    snapshot,
)


class Attention(Lazy[Any]):
    heads: int = REQUIRED
    dropout: float = 0.0


class Model(Lazy[Any]):
    dim: int = REQUIRED
    layers: int = REQUIRED
    max_seq_len: int = 1
    attention: Attention = Attention(heads=2)

    @derived
    def ffn(self) -> int:
        return 4 * self.dim


class Tokenizer(Lazy[Any]):
    vocab: int = 10


class Base(Lazy[Any]):
    seq_len: int = 128

    @derived
    def tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @derived
    def model(self) -> Model:
        return Model(max_seq_len=self.seq_len)


class Small(Base):
    seq_len = 256
    model = patch(Model, dim=8, layers=2)


def test_a_derived_field_sees_what_subclasses_and_instances_say():
    assert Small().model.max_seq_len == 256
    assert Small(seq_len=5).model.max_seq_len == 5
    assert Base().model.max_seq_len == 128


def test_a_derived_field_is_computed_once_and_only_when_it_is_read():
    calls = []

    class Counting(Lazy[Any]):
        n: int = 1

        @derived
        def m(self) -> int:
            calls.append(self.n)
            return self.n

    one = Counting()
    assert calls == []
    assert (one.m, one.m) == (1, 1)
    assert calls == [1]


def test_a_derived_field_can_be_overridden_by_value_patch_and_another_derived_field():
    class Value(Small):
        model = Model(dim=1, layers=1)

    class Again(Small):
        @derived
        def model(self) -> Model:
            return Model(dim=self.seq_len, layers=1)

    assert Value().model.ffn == 4
    assert Again().model.dim == 256
    assert replace(Small(), model=patch(Model, dim=3)).model.ffn == 12


def test_super_reaches_the_derived_value_of_the_base_through_two_levels():
    """Edge 23: without descriptors that know their owner this is a false cycle."""

    class Wide(Small):
        @derived
        def model(self) -> Model:
            return replace(super().model, dim=3)

    class Deep(Wide):
        @derived
        def model(self) -> Model:
            return replace(super().model, layers=self.seq_len)

    assert (Wide().model.dim, Wide().model.layers) == (3, 2)
    assert (Deep().model.dim, Deep().model.layers, Deep().model.attention.heads) == (3, 256, 2)
    assert override(Deep(), {"seq_len": "7", "model.dim": "5"}).model.layers == 7


def test_derived_fields_that_need_each_other_are_named_in_order():
    class Loop(Lazy[Any]):
        @derived
        def a(self) -> int:
            return self.b

        @derived
        def b(self) -> int:
            return self.a

    with pytest.raises(CycleError, match=r"Loop: a -> b -> a: these derived fields need each other .*resolving.py:\d+"):
        _ = Loop().a


def test_a_misspelt_name_inside_a_derived_field_is_reported_as_what_it_is():
    class Typo(Base):
        @derived
        def width(self) -> int:
            return self.seqlen

    with pytest.raises(
        ConfigError, match=r"Typo.width: Typo has no field 'seqlen'; did you mean 'seq_len'.*resolving.py:\d+"
    ):
        _ = Typo().width


def test_an_exception_inside_a_derived_field_is_a_config_error_with_its_line():
    class Divides(Base):
        heads: int = 0

        @derived
        def head_dim(self) -> int:
            return self.seq_len // self.heads

    with pytest.raises(
        ConfigError, match=r"Divides.head_dim: .* ZeroDivisionError: .*\(tests/dsl/test_resolving.py:\d+\)"
    ):
        _ = Divides().head_dim
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        check(Divides())


def test_a_derived_result_of_the_wrong_type_is_refused_with_its_line():
    class Wrong(Base):
        @derived
        def model(self) -> Model:
            return Tokenizer()  # type: ignore[return-value]

    with pytest.raises(ConfigError, match=r"Wrong.model: expected Model, got Tokenizer \(.*resolving.py:\d+\)"):
        _ = Wrong().model


def test_a_patch_returned_by_a_derived_field_is_explained():
    class Patches(Base):
        @derived
        def model(self) -> Model:
            return patch(Model, dim=3)

    with pytest.raises(ConfigError, match=r"write replace\(super\(\).field, ...\) or Model\(...\)"):
        _ = Patches().model


def test_a_missing_value_says_which_class_and_line_declares_it():
    with pytest.raises(
        MissingValue, match=r"Attention.heads is required \(declared by Attention, tests/dsl/test_resolving.py:\d+\)"
    ):
        _ = Attention().heads


def test_required_can_be_put_back_by_a_subclass():
    class Open(Attention):
        heads = 4

    class Again(Open):
        heads = REQUIRED

    assert Open().heads == 4
    with pytest.raises(MissingValue, match="declared by Attention"):
        _ = Again().heads


def test_required_is_not_a_value():
    with pytest.raises(MissingValue, match="REQUIRED was used as a value"):
        bool(REQUIRED)
    assert copy.deepcopy(REQUIRED) is REQUIRED


def test_a_required_field_filled_without_annotation_is_filled():
    """Edge 15: for checkers a bare `dim: int` stays missing; REQUIRED is how to say it, and we check at runtime."""

    class Filled(Attention):
        heads = 3

    assert Filled().heads == 3
    assert patch(Attention, dropout=0.5) is not None  # names one field only


def test_evolve_never_freezes_a_derived_value():
    small = Small()
    before = snapshot(small)
    changed = attrs.evolve(small, seq_len=9)
    assert changed.model.max_seq_len == 9
    assert changed.model.dim == 8
    assert snapshot(small) == before
    assert attrs.evolve(changed, seq_len=128).model.max_seq_len == 128


def test_evolve_keeps_a_derived_value_that_was_given_even_where_it_equals_the_computed_one():
    model = Model(dim=8, layers=1)
    assert model.ffn == 32
    frozen = attrs.evolve(model, ffn=32)
    assert attrs.evolve(frozen, dim=16).ffn == 32
    assert attrs.evolve(model, dim=16).ffn == 64


def test_evolve_works_while_fields_are_missing():
    half = attrs.evolve(Model(), dim=4)
    assert half.ffn == 16
    whole = attrs.evolve(half, layers=2)
    assert (whole.dim, whole.layers) == (4, 2)


def test_evolve_takes_patches_and_refuses_unknown_names():
    changed = attrs.evolve(Small(), model=patch(Model, dim=1))
    assert (changed.model.dim, changed.model.layers) == (1, 2)
    with pytest.raises(UnknownField, match="did you mean 'seq_len'"):
        attrs.evolve(Small(), seqlen=1)


@pytest.mark.skipif(sys.version_info < (3, 13), reason="copy.replace is new in Python 3.13")
def test_copy_replace_is_replace():
    small = Small()
    _ = small.model
    assert copy.replace(small, seq_len=3).model.max_seq_len == 3  # type: ignore[attr-defined]


def test_equal_means_the_same_class_and_the_same_values():
    assert Small() == Small(seq_len=256)
    assert hash(Small()) == hash(Small(seq_len=256))
    assert Small() != Small(seq_len=1)
    assert Small() != Base()
    assert Attention() == Attention()
    assert repr(Small(seq_len=3)) == "Small(seq_len=3)"


def test_threads_that_resolve_one_field_get_one_object():
    """Edge 30: an unlocked memo may compute twice, and identity is what sharing goes by."""
    started = threading.Barrier(8)

    class Slow(Base):
        @derived
        def tokenizer(self) -> Tokenizer:
            threading.Event().wait(0.01)
            return Tokenizer()

    slow, seen = Slow(), []

    def read() -> None:
        started.wait()
        seen.append(slow.tokenizer)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(tokenizer) for tokenizer in seen}) == 1
    assert len(seen) == 8


def test_replace_says_what_it_needs():
    with pytest.raises(ConfigError, match=r"expected an instance of a Lazy class, got .*Small.*; write Small\(\)"):
        replace(Small, seq_len=1)
    with pytest.raises(UnknownField, match=r"replace\(Small, ...\): no field 'seqlen'; did you mean 'seq_len'"):
        replace(Small(), seqlen=1)
