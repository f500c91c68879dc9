"""When two places hold one object: through @derived, or when one object was passed twice; never through a class default."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

from forgather_dsl.dsl import Lazy, build, derived, graph, patch, replace, snapshot


class Norm(Lazy["builtins.dict"]):
    eps: float = 1e-5


class Attention(Lazy["builtins.dict"]):
    norm: Norm = Norm()


class Tokenizer(Lazy["fractions.Fraction"]):
    numerator: int = 3


class Data(Lazy["builtins.dict"]):
    tokenizer: Tokenizer = Tokenizer()


class Pair(Lazy["builtins.dict"]):
    left: Any = None
    right: Any = None


class Base(Lazy["builtins.dict"]):
    first: Attention = Attention()
    second: Attention = Attention()

    @derived
    def tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @derived
    def data(self) -> Data:
        return Data(tokenizer=self.tokenizer)

    @derived
    def eval_data(self) -> Data:
        return Data(tokenizer=self.tokenizer)


def test_two_components_with_a_default_norm_get_two_norms():
    base = Base()
    assert base.first.norm is not base.second.norm
    built = build(base)
    assert built["first"]["norm"] is not built["second"]["norm"]
    assert Base().first is not base.first


def test_one_value_reached_through_derived_is_one_object_and_built_once():
    base = Base()
    assert base.data.tokenizer is base.eval_data.tokenizer is base.tokenizer
    built = build(base)
    assert built["data"]["tokenizer"] is built["eval_data"]["tokenizer"] is built["tokenizer"]
    assert built["tokenizer"] == Fraction(3)
    assert ("eval_data", "tokenizer", "tokenizer") in graph(base).edges


def test_the_same_object_passed_twice_is_built_once_and_two_equal_ones_twice():
    """Edge 11: equal is not the same: a memo keyed by value would merge what the user kept apart."""
    norm = Norm()
    once = build(Pair(left=norm, right=norm))
    twice = build(Pair(left=Norm(), right=Norm()))
    assert once["left"] is once["right"]
    assert twice["left"] is not twice["right"]


def test_a_memo_keeps_what_it_built_apart_from_what_comes_after_collection():
    """Edge 11: ids are reused after collection, so a memo must hold the Lazies it knows."""
    memo: dict[int, Any] = {}
    built = [build(Tokenizer(numerator=n), memo=memo) for n in range(50)]  # each Lazy is garbage at once
    assert built == [Fraction(n) for n in range(50)]


def test_one_memo_shares_between_calls_of_build():
    base, memo = Base(), {}
    assert build(base.data.tokenizer, memo=memo) is build(base.eval_data.tokenizer, memo=memo)
    assert build(base.tokenizer) is not build(base.tokenizer, memo=memo)


def test_what_a_class_body_holds_twice_is_shared_within_one_instance_only():
    norm = Norm()

    class Mine(Lazy[Any]):
        left: Norm = norm
        right: Norm = norm

    one, two = Mine(), Mine()
    assert one.left is one.right
    assert one.left is not two.left
    assert one.left is not norm


def test_a_lazy_inside_a_patch_is_copied_for_each_owner():
    class Mine(Base):
        first = patch(Attention, norm=Norm(eps=0.5))

    one, two = Mine(), Mine()
    assert one.first.norm is not two.first.norm
    assert one.first.norm.eps == two.first.norm.eps == 0.5


def test_replacing_a_shared_value_at_its_source_reaches_every_place():
    base = replace(Base(), tokenizer=Tokenizer(numerator=5))
    assert base.data.tokenizer is base.eval_data.tokenizer
    assert base.data.tokenizer.numerator == 5


def test_copies_share_inside_what_was_shared_inside():
    norm = Norm()
    pair = Pair(left=norm, right=norm)
    deep = copy.deepcopy([pair, pair, norm])
    assert deep[0] is deep[1]
    assert deep[0].left is deep[0].right is deep[2]
    assert deep[2] is not norm
    assert copy.copy(pair).left is norm
    assert snapshot(deep[0]) == snapshot(pair)
