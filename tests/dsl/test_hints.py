"""Did you mean: names that stand elsewhere, values that are nearly right, and what to write for them."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from forgather_dsl.dsl import ConfigError, Lazy, UnknownField, derived, from_dict, override, warnings

T = TypeVar("T")


class Optimizer(Lazy[T], abstract=True):
    lr: float = 1e-3


class AdamW(Optimizer[Any]):
    eps: float = 1e-8


class Muon(Optimizer[Any]):
    momentum: float = 0.95


class Parallel(Lazy[Any], abstract=True):
    pass


class Single(Parallel):
    pass


class Pipeline(Parallel):
    stages: int = 1
    cuts: tuple[int, ...] = ()


class Sharded(Parallel):
    shards: int = 1
    cuts: tuple[int, ...] = ()


class Model(Lazy[Any]):
    dim: int = 1


class Root(Lazy[Any]):
    steps: int = 10
    seq_len: int = 128
    optimizer: Optimizer = AdamW()
    parallel: Parallel = Single()
    loggers: tuple[Optimizer, ...] = ()
    names: tuple[str, ...] = ()

    @derived
    def model(self) -> Model:
        return Model()


def test_a_name_that_stands_below_a_field_is_found_there():
    with pytest.raises(
        UnknownField, match=r"did you mean 'optimizer.lr'\? write optimizer = patch\(AdamW, lr=...\) \(to declare"
    ):

        class Mine(Root):
            lr = 3

    with pytest.raises(UnknownField, match=r"did you mean 'model.dim'\? write model = patch\(Model, dim=...\)"):

        class Wide(Root):
            dim = 3

    with pytest.raises(UnknownField, match=r"^lr: Root has no field 'lr'; did you mean 'optimizer.lr'\?$"):
        override(Root(), {"lr": "1"})
    with pytest.raises(UnknownField, match=r"no field 'momentum'; did you mean 'optimizer.momentum'"):
        override(Root(optimizer=Muon()), {"momentum": "1"})
    with pytest.raises(UnknownField, match=r"Root: no field 'lr'; did you mean 'optimizer.lr'"):
        Root(lr=1)
    with pytest.raises(UnknownField, match=r"did you mean 'optimizer.lr'"):
        _ = Root().lr


def test_an_exact_name_below_comes_before_a_near_name_here():
    with pytest.raises(UnknownField, match=r"did you mean 'optimizer.eps' or 'steps'\?"):
        override(Root(), {"eps": "1"})


def test_a_name_that_another_kind_of_the_thing_has_is_found_there():
    with pytest.raises(UnknownField, match=r"^parallel.stages: Single has no field 'stages'; Pipeline has it$"):
        override(Root(), {"parallel.stages": "2"})
    with pytest.raises(UnknownField, match=r"Single has no field 'cuts'; Pipeline, Sharded have it"):
        override(Root(), {"parallel.cuts": "2"})
    with pytest.raises(UnknownField, match=r"AdamW: no field 'momentum'; Muon has it"):
        AdamW(momentum=1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", "10", "expected int, got '10', a str; write 10"),
        ("steps", 1e3, "expected int, got 1000.0, a float; write 1000"),
        ("steps", 1.5, "expected int, got 1.5, a float$"),
        ("steps", "many", "expected int, got 'many', a str$"),
        ("optimizer", "Muon", r"expected Optimizer, got 'Muon', a str; write Muon\(\)"),
        ("optimizer", "Moun", "got 'Moun', a str; did you mean 'Muon'"),
        ("optimizer", "sgd", "got 'sgd', a str; there are: AdamW, Muon"),
        ("optimizer", Muon, r"got the class Muon; write Muon\(\) with brackets"),
        ("loggers", Muon(), r"expected tuple\[Optimizer, ...\], got Muon; write a tuple: \(Muon\(\),\)"),
        ("loggers", (Muon,), r"; write Muon\(\) with brackets"),
        ("loggers", [Muon()], r"write a tuple: \(Muon\(\),\)"),
        ("names", "one", r"write a tuple: \('one',\)"),
        ("parallel", None, "expected Parallel, got None, a NoneType"),
        ("seq_len", "x" * 3, "a str$"),
    ],
)
def test_a_value_that_is_nearly_right_comes_with_what_to_write(field, value, message):
    with pytest.raises(ConfigError) as raised:
        type("Mine", (Root,), {field: value}) if not isinstance(value, list) else Root(**{field: value})
    text = str(raised.value).rpartition(" (")[0]
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(text)


def test_a_dict_for_a_component_names_the_component():
    with pytest.raises(ConfigError, match=r"mutable default, a dict; write Optimizer\(...\), or @derived"):

        class Mine(Root):
            optimizer = {"lr": 1}  # noqa: RUF012


def test_data_of_another_version_gets_suggestions_too():
    with pytest.raises(
        UnknownField, match="argumentz: Call of this version has no field 'argumentz'; did you mean 'arguments'"
    ):
        from_dict({"$type": "forgather_dsl.dsl.special:Call", "argumentz": {}})


def test_a_new_field_that_is_nearly_an_old_one_is_warned_about():
    class Mine(Root):
        seqlen: int = 4
        temperature: float = 1.0

    (text,) = warnings(Mine())
    assert text.endswith(": Mine declares seqlen, a new field; did you mean 'seq_len'?")
    assert "test_hints.py:" in text
    assert warnings(Root()) == []
