"""What a class body may say, and which mistakes in it are found when the class is created, at their line."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import attrs
import pytest

from forgather_dsl.dsl import REQUIRED, ConfigError, Frozen, Lazy, UnknownField, derived, replace

if TYPE_CHECKING:
    pass

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


def line_after(text: str) -> str:
    """`file:line` of the line of this file that holds `text`."""
    lines = inspect.getsourcelines(inspect.getmodule(line_after))[0]
    (number,) = [i + 1 for i, line in enumerate(lines) if text in line and "line_after" not in line]
    return f"test_declaring.py:{number}"


def test_an_unannotated_assignment_in_a_subclass_overrides_the_field():
    """Edge 1: attrs ignores it, and under slots deletes it."""

    class Mine(Base):
        seq_len = 256

    assert Mine().seq_len == 256
    assert Base().seq_len == 128
    assert attrs.fields(Mine).seq_len.default == 256


def test_the_class_that_init_subclass_sees_is_the_class_that_stays():
    """Edge 2: slots=True makes every class twice."""
    seen = []

    class Watching(Lazy[Any]):
        def __init_subclass__(cls, **kw: Any) -> None:
            super().__init_subclass__(**kw)
            seen.append(cls)

    class Mine(Watching):
        x: int = 1

    assert seen == [Mine]
    assert seen[0] is Mine


def test_two_bases_with_fields_of_their_own_make_one_class():
    """Edge 3: slotted classes raise an instance lay-out conflict."""

    class Short(Base):
        seq_len = 16
        stride: int = 4

    class Careful(Base):
        clip: float = 1.0

    class Both(Short, Careful):
        pass

    both = Both()
    assert (both.seq_len, both.stride, both.clip) == (16, 4, 1.0)
    assert set(Both.__fields__) == {a.name for a in attrs.fields(Both)}
    assert {"seq_len", "stride", "clip"} <= set(Both.__fields__)


def test_takes_self_factories_are_refused_in_favour_of_derived():
    """Edge 4: attrs.Factory(takes_self=True) is eager, and stale after evolve; @derived is neither."""
    with pytest.raises(ConfigError, match=r"Eager.twice: .*write @derived instead .*test_declaring.py:\d+"):

        class Eager(Base):
            twice: int = attrs.Factory(lambda self: self.later * 2, takes_self=True)
            later: int = 1

    class Late(Base):
        @derived
        def twice(self) -> int:
            return self.later * 2

        later: int = 1

    assert Late().twice == 2
    assert attrs.evolve(Late(), later=5).twice == 10


def test_a_redefined_field_keeps_the_place_of_its_first_declaration():
    """Edge 5: attrs moves a redefined field to the end, and golden files reorder."""

    class Mine(Base):
        optimizer: Optimizer = AdamW(lr=1.0)
        new: int = 1
        seq_len = 3

    assert list(Mine.__fields__) == ["seq_len", "optimizer", "model", "tags", "new"]


def test_annotating_again_without_a_value_keeps_the_default():
    """Edge 6: attrs makes such a field required."""

    class Narrower(Optimizer[Any]):
        lr: float

    class Tighter(Optimizer[Any]):
        lr: float = attrs.field(validator=attrs.validators.lt(1.0))

    assert Narrower().lr == 1e-3
    assert Tighter().lr == 1e-3
    with pytest.raises(ConfigError, match=r"must be < 1\.0"):
        Tighter(lr=2.0)


def test_a_tightened_field_must_take_the_default_it_inherits():
    with pytest.raises(ConfigError, match=r"Whole.lr: expected int, got 0.001"):

        class Whole(Optimizer[Any]):
            lr: int  # type: ignore[assignment]

    with pytest.raises(ConfigError, match=r"Big.lr = 0.001: 'lr' must be > 1"):

        class Big(Optimizer[Any]):
            lr: float = attrs.field(validator=attrs.validators.gt(1))


def test_required_fields_may_follow_fields_with_defaults():
    """Edge 7: attrs raises for a mandatory field after one with a default."""

    class Mixed(Lazy[Any]):
        a: int = 1
        b: int
        c: int = REQUIRED

    class More(Mixed):
        d: int

    assert More(b=1, c=2, d=3).d == 3
    assert attrs.fields(More).b.default is attrs.NOTHING
    assert all(a.kw_only for a in attrs.fields(More))


@pytest.mark.parametrize(
    ("value", "instead"),
    [([], "a tuple"), ({}, r"types.MappingProxyType"), (set(), "a frozenset"), (bytearray(), "bytes")],
    ids=["list", "dict", "set", "bytearray"],
)
def test_mutable_defaults_are_refused(value, instead):
    """Edge 8: attrs shares them between instances without a word."""
    with pytest.raises(ConfigError, match=rf"Bad.xs: mutable default, a {type(value).__name__}; write {instead}"):

        class Bad(Base):
            xs: Any = value

    with pytest.raises(ConfigError, match="mutable default"):

        class AlsoBad(Base):
            xs: Any = attrs.field(factory=type(value))


def test_assignment_to_an_instance_raises_our_error_with_what_to_write():
    """Edge 9: attrs' frozen classes raise an error that cannot carry a message, and `on_setattr=[]` overwrites ours."""
    base = Base()
    with pytest.raises(
        Frozen, match=r"Base.seq_len: .* frozen; write replace\(x, seq_len=...\) \(.*test_declaring.py:\d+"
    ):
        base.seq_len = 3
    with pytest.raises(Frozen, match="a subclass that declares it"):
        base.other = 3
    with pytest.raises(Frozen):
        del base.seq_len
    assert base.seq_len == 128


def test_in_a_diamond_the_class_nearest_in_the_mro_decides():
    """Edge 10: legacy attr.s takes the first base's inherited value instead."""

    class Right(Base):
        seq_len = 1

    class Left(Base):
        pass

    class Bottom(Left, Right):
        pass

    assert Bottom().seq_len == 1
    assert attrs.fields(Bottom).seq_len.default == 1
    assert [a.inherited for a in attrs.fields(Left)] == [True] * 4


def test_an_unknown_name_is_refused_with_a_suggestion_and_its_line():
    """Edge 20: a misspelt name in a class body looks like a new class variable to type checkers."""
    with pytest.raises(UnknownField) as raised:

        class Mine(Base):
            seqlen = 4  # the misspelt line

    message = str(raised.value)
    assert "Mine.seqlen: no field 'seqlen' to override; did you mean 'seq_len'?" in message
    assert "annotate it: seqlen: int = ..." in message
    assert line_after("# the misspelt line") in message


def test_a_derived_field_is_not_in_the_constructor_that_checkers_see_but_can_be_given():
    """Edge 20, continued: it can be overridden in a class, by replace, and as an argument."""

    class Mine(Base):
        @derived
        def width(self) -> int:
            return 1

    class Wider(Mine):
        width = 3

    assert (Mine().width, Wider().width, replace(Mine(), width=2).width, Mine(width=4).width) == (1, 3, 2, 4)


def test_a_method_over_a_field_is_refused():
    """Edge 25: it would be called never; a function as a value is fine."""
    for make in (lambda f: f, property, classmethod, staticmethod):
        with pytest.raises(ConfigError, match=r"Mine.seq_len: a method over a field; decorate it with @derived"):

            class Mine(Base):
                @make
                def seq_len(self): ...

    class Functions(Lazy[Any]):
        activation: Callable[..., Any] = abs

        def helper(self) -> int:
            return 7

    class Squared(Functions):
        activation = lambda x: x * x  # noqa: E731

    assert Squared().activation(3) == 9
    assert Squared().helper() == 7


def test_every_problem_of_a_class_body_is_reported_at_once():
    with pytest.raises(ConfigError) as raised:

        class Mine(Base):
            seqlen = 3
            optimizer = Model(dim=1)
            xs: list[int] = []  # noqa: RUF012
            seq_len = True

            def model(self): ...

    problems = raised.value.problems
    assert len(problems) == 5
    assert all("test_declaring.py:" in problem for problem in problems)
    for part in ("seqlen", "expected Optimizer, got Model", "mutable", "expected int, got True", "@derived"):
        assert part in str(raised.value)


def test_private_names_and_class_variables_are_no_fields():
    class Mine(Base):
        registry: ClassVar[list[int]] = []
        _cache = 3

        class Inner:
            pass

    assert "registry" not in Mine.__fields__
    assert Mine.registry == []
    assert Mine()._cache == 3


def test_attrs_knows_every_field_with_its_type_default_and_validator():
    assert attrs.has(AdamW)
    assert [a.name for a in attrs.fields(AdamW)] == ["lr", "betas"]
    assert attrs.fields(AdamW).betas.default == (0.9, 0.95)
    assert attrs.fields(Model).dropout.validator is not None
    assert attrs.asdict(AdamW(lr=2), recurse=False) == {"lr": 2.0, "betas": (0.9, 0.95)}


def test_python_can_still_tell_a_property_that_fails_from_a_missing_field():
    class Mine(Base):
        @property
        def broken(self) -> int:
            return self.seq_lenn

    with pytest.raises(UnknownField, match="no field 'seq_lenn'; did you mean 'seq_len'"):
        _ = Mine().broken
    with pytest.raises(UnknownField, match="Mine has no field 'modle'; did you mean 'model'"):
        _ = Mine().modle
    assert not hasattr(Mine(), "__array__")
