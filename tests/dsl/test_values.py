"""Which values a field takes: types, converters, validators, annotations, in class bodies, calls and patches."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import pytest

from forgather_dsl.dsl import REQUIRED, ConfigError, Factory, Lazy, check, derived, patch, replace

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T")


class Optimizer(Lazy[T], abstract=True):
    lr: float = 1e-3


class AdamW(Optimizer["torch.optim.AdamW"]):
    betas: tuple[float, float] = (0.9, 0.95)


class Model(Lazy[Any]):
    dim: int = REQUIRED
    dropout: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    kind: Literal["sdpa", "flex"] = "sdpa"


class Base(Lazy[Any]):
    seq_len: int = 128
    optimizer: Optimizer = AdamW()
    model: Model = Model(dim=8)
    tags: tuple[str, ...] = attrs.field(
        default=(), converter=lambda value: (value,) if isinstance(value, str) else value
    )


def test_every_problem_of_a_call_is_reported_at_once():
    with pytest.raises(ConfigError) as raised:
        Model(dimm=3, dropout="x", kind="flax", dim=1.5)
    text = str(raised.value)
    assert len(raised.value.problems) == 4
    assert "did you mean 'dim'" in text
    assert "Model.dropout: expected float, got 'x', a str" in text
    assert "Model.kind: expected Literal['sdpa', 'flex'], got 'flax'" in text
    assert text.count("test_values.py:") == 4


def test_validators_and_converters_hold_in_bodies_instances_patches_and_derived_results():
    with pytest.raises(ConfigError, match=r"Body.dropout = -1.0: 'dropout' must be >= 0.0"):

        class Body(Model):
            dropout = -1.0

    with pytest.raises(ConfigError, match="must be >= 0"):
        Model(dropout=-1)
    with pytest.raises(ConfigError, match="must be >= 0"):
        patch(Model, dropout=-1)

    class Computed(Model):
        @derived
        def dropout(self) -> float:
            return -float(self.dim)

    with pytest.raises(ConfigError, match=r"Computed.dropout = -8.0: 'dropout' must be >= 0.0.*test_values.py:\d+"):
        _ = Computed(dim=8).dropout

    class Tagged(Base):
        tags = "one"

    assert Tagged().tags == ("one",)
    assert Base(tags="two").tags == ("two",)
    assert replace(Base(), tags="three").tags == ("three",)


def test_a_converter_runs_once():
    class Doubled(Lazy[Any]):
        n: int = attrs.field(default=1, converter=lambda n: n * 2)

    made = Doubled(n=3)
    check(made)
    assert (made.n, copy.copy(made).n, replace(made).n, attrs.evolve(made).n, Doubled().n) == (6, 6, 6, 6, 2)


def test_a_converter_that_fails_says_which_value():
    class Sized(Lazy[Any]):
        n: int = attrs.field(default=1, converter=int)

    with pytest.raises(ConfigError, match=r"Sized.n = 'many': invalid literal for int.*test_values.py:\d+"):
        Sized(n="many")


def test_a_validator_that_looks_at_other_fields_is_asked_when_the_instance_is_checked():
    class Heads(Lazy["builtins.dict"]):
        heads: int = 4
        kv_heads: int = attrs.field(default=4)

        @kv_heads.validator
        def _divides(self, attribute: Any, value: int) -> None:
            if self.heads % value:
                raise ValueError(f"{self.heads} heads for {value}")

    check(Heads(kv_heads=2))
    with pytest.raises(ConfigError, match="4 heads for 3"):
        check(Heads(kv_heads=3))


def test_values_are_given_by_name():
    with pytest.raises(ConfigError, match=r"AdamW takes its values by name, as AdamW\(lr=...\)"):
        AdamW(1e-3)


def test_a_class_instead_of_an_instance_is_explained():
    with pytest.raises(ConfigError, match=r"write AdamW\(\) with brackets"):

        class Mine(Base):
            optimizer = AdamW

    with pytest.raises(ConfigError, match=r"got the field Base.seq_len of the class; take the value from an instance"):
        Model(dim=Base.seq_len)


def test_a_list_for_a_tuple_is_explained():
    with pytest.raises(
        ConfigError, match=r"AdamW.betas: expected tuple\[float, float\], got .*; write a tuple: \(0.9, 1\)"
    ):
        AdamW(betas=[0.9, 1])


def test_an_int_for_a_float_is_the_same_configuration():
    assert repr(Optimizer(lr=1).lr) == "1.0"
    assert repr(AdamW(betas=(0, 1)).betas) == "(0.0, 1.0)"


def test_mappings_are_frozen_copies():
    class Mine(Lazy[Any]):
        options: Mapping[str, float] = MappingProxyType({"a": 1})

    source = {"b": 2}
    mine = Mine(options=source)
    source["b"] = 3
    assert dict(mine.options) == {"b": 2.0}
    assert repr(mine.options["b"]) == "2.0"
    with pytest.raises(ConfigError, match="expected Mapping"):
        Mine(options={"a": "x"})


def test_a_name_known_only_to_type_checkers_costs_its_check_and_nothing_else():
    """Edge 14: evaluating such an annotation raises NameError."""

    class Mine(Lazy[Any]):
        price: Decimal | None = None
        norm: Factory[Decimal] | None = None  # type: ignore[assignment]
        count: int = 1

    assert Mine(price=3).price == 3  # cannot be checked
    with pytest.raises(ConfigError, match="expected int"):
        Mine(count="x")


def test_annotations_that_name_classes_of_the_surrounding_function_are_understood():
    class Norm(Lazy[Any]):
        pass

    class Block(Lazy[Any]):
        norm: Norm = Norm()
        inner: Block | None = None

    with pytest.raises(ConfigError, match="expected Norm, got 3"):
        Block(norm=3)
    with pytest.raises(ConfigError, match=r"expected Block \| None, got Norm"):
        Block(inner=Norm())


def test_python_314_annotations_that_are_not_there_yet_are_read_as_text(monkeypatch):
    """Edge 29: annotations are computed on demand, so an undefined name raises unless asked for as a forward reference."""
    import sys
    import types
    import typing

    from forgather_dsl.dsl import annotations

    asked = []

    def get_annotations(written_in: Any, format: str) -> dict[str, Any]:
        asked.append(format)
        later = typing.Optional[typing.ForwardRef("Later")] if format == "forwardref" else "Later | None"  # noqa: UP045
        return {"here": int if format == "forwardref" else "int", "later": later}

    fake = types.SimpleNamespace(
        get_annotations=get_annotations, Format=types.SimpleNamespace(FORWARDREF="forwardref", STRING="string")
    )
    monkeypatch.setitem(sys.modules, "annotationlib", fake)
    monkeypatch.setattr(annotations.sys, "version_info", (3, 14))
    assert annotations.own_annotations(Base) == {"here": int, "later": "Later | None"}
    assert asked == ["forwardref", "string"]


def test_a_value_of_the_wrong_type_is_refused_two_levels_down():
    """Edge 16: pyright compares an unannotated override with the nearest base only."""

    class Middle(Base):
        seq_len = 64

    with pytest.raises(ConfigError, match=r"Mine.seq_len: expected int, got '4k', a str \(.*test_values.py:\d+\)"):

        class Mine(Middle):
            seq_len = "4k"
