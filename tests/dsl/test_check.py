"""check: everything that is wrong at once, root causes only, each with its place and what to write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest

from forgather_dsl.dsl import (
    REQUIRED,
    ConfigError,
    Lazy,
    MissingValue,
    PatchError,
    check,
    derived,
    is_mixin,
    missing,
    override,
    patch,
    problems,
)


class Attention(Lazy[Any]):
    heads: int = REQUIRED


class Model(Lazy[Any]):
    dim: int = REQUIRED
    attention: Attention = Attention()
    second: Attention = Attention()

    @derived
    def width(self) -> int:
        return self.dim * 2

    def __check__(self) -> Iterator[tuple[str, str]]:
        if self.dim % self.attention.heads:
            yield "dim", f"{self.dim} is not a multiple of {self.attention.heads}"


class Base(Lazy[Any]):
    seq_len: int = REQUIRED
    size: int = attrs.field(default=4)

    @size.validator
    def _fits(self, attribute: Any, value: int) -> None:
        if value > self.seq_len:
            raise ValueError(f"more than seq_len {self.seq_len}")

    @derived
    def model(self) -> Model:
        return Model()

    @derived
    def area(self) -> int:
        return self.seq_len * self.model.dim


class Whole(Base):
    seq_len = 8
    model = patch(Model, dim=6, attention=patch(Attention, heads=2), second=patch(Attention, heads=1))


def test_all_missing_values_are_reported_at_once_as_root_causes():
    with pytest.raises(MissingValue) as raised:
        check(Base())
    texts = raised.value.problems
    assert [text.partition(":")[0] for text in texts] == [
        "Base.seq_len is required (declared by Base, tests/dsl/test_check.py",
        "model.dim",
        "model.attention.heads",
        "model.second.heads",
    ]
    assert missing(Base()) == ["seq_len", "model.dim", "model.attention.heads", "model.second.heads"]
    assert "declared by Attention, tests/dsl/test_check.py:" in texts[2]


def test_a_missing_value_says_what_to_write():
    texts = [str(problem) for problem in problems(Base())]
    assert texts[0].endswith("; write seq_len = ... in a subclass, or --set seq_len=...")
    assert texts[2].endswith(
        "; write model = patch(Model, attention=patch(Attention, heads=...)) in a subclass, or --set model.attention.heads=..."
    )


def test_a_whole_experiment_passes():
    check(Whole())
    assert problems(Whole()) == []
    assert missing(Whole()) == []


def test_rules_of_components_are_asked_when_all_values_are_there_and_name_the_line():
    class Odd(Whole):
        model = patch(Model, dim=7)  # what breaks the rule

    (problem,) = problems(Odd())
    assert str(problem).startswith("model.dim: 7 is not a multiple of 2 (tests/dsl/test_check.py:")
    with pytest.raises(ConfigError, match="7 is not a multiple"):
        check(Odd())
    (overlaid,) = problems(override(Whole(), {"model.dim": "9"}))
    assert str(overlaid) == "model.dim: 9 is not a multiple of 2"


def test_validators_that_look_at_other_fields_run_with_the_instance():
    class Small(Whole):
        seq_len = 3

    (problem,) = problems(Small())
    assert str(problem) == "Small.size = 4: more than seq_len 3"


def test_problems_of_different_kinds_come_together():
    class Mixed(Base):
        size = 3

        @derived
        def model(self) -> Model:
            raise RuntimeError("no model today")

        other: Attention = REQUIRED

    with pytest.raises(ConfigError) as raised:
        check(Mixed())
    text = str(raised.value)
    assert type(raised.value) is ConfigError
    assert text.startswith("Mixed:\n  ")
    assert len(raised.value.problems) == 3
    assert "RuntimeError: no model today" in text
    assert text.count("no model today") == 1  # area fails with it, and is not named


def test_a_patch_that_cannot_apply_makes_a_mixin():
    class Other(Lazy[Any]):
        x: int = 1

    class Mixin(Whole):
        extra: Any = Other()

    class Patched(Mixin):
        extra = patch(Attention, heads=3)

    assert is_mixin(Patched())
    assert not is_mixin(Base())
    with pytest.raises(PatchError, match=r"^Patched.extra: patch\(Attention, heads=3\) .* does not apply"):
        check(Patched())


def test_check_takes_an_instance():
    with pytest.raises(ConfigError, match=r"write Whole\(\)"):
        check(Whole)  # type: ignore[arg-type]


def test_a_value_missing_inside_a_derived_computation_is_reported_where_it_was_needed():
    class Hidden(Lazy[Any]):
        @derived
        def heads(self) -> int:
            return Attention().heads

    (problem,) = problems(Hidden())
    assert str(problem).startswith("heads: Attention.heads is required")
    assert "; write" not in str(problem)
