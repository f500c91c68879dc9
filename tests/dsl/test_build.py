"""build: children first, each Lazy once, factories as callables, context by signature, and errors that name the place."""

from __future__ import annotations

import functools
from collections import OrderedDict
from decimal import Decimal
from typing import Any, NamedTuple, TypeVar

import attrs
import pytest

from forgather_dsl.dsl import (
    REQUIRED,
    ConfigError,
    Cycle,
    Factory,
    Lazy,
    MissingValue,
    build,
    call,
    derived,
    override,
    patch,
)

T = TypeVar("T")


class Thing:
    """What most Lazies here build: remembers its arguments."""

    def __init__(self, **arguments: Any) -> None:
        self.__dict__.update(arguments)


class RMSNormModule:
    def __init__(self, dim: int, eps: float) -> None:
        self.dim, self.eps = dim, eps


class AttentionModule:
    def __init__(self, dim: int, layer_index: int, window: int, norm: Any) -> None:
        self.dim, self.layer_index, self.window, self.norm = dim, layer_index, window, norm


class Norm(Lazy[T], abstract=True, runtime=("dim",)):
    eps: float = 1e-5


class RMSNorm(Norm["RMSNormModule"]):
    pass


class Attention(Lazy["AttentionModule"], runtime=("dim", "layer_index")):
    window: int = 0
    norm: Factory[Norm] = RMSNorm()


class Model(Lazy["Thing"]):
    norm: Factory[Norm] = RMSNorm()
    attention: Factory[Attention] = Attention()
    maybe: Factory[Norm] | None = None
    parts: tuple[Any, ...] = ()


class Value(Lazy["decimal.Decimal"]):
    value: str = "1"


def make(x: int = 0, dim: int = 0) -> dict[str, int]:
    return {"x": x, "dim": dim}


def test_targets_are_imported_only_when_built():
    class Far(Lazy["nowhere.at.all.Thing"]):
        x: int = 1

    far = Far()
    assert far.x == 1
    with pytest.raises(
        ConfigError, match=r"Far builds 'nowhere.at.all.Thing': no module named 'nowhere'; .*misspelt.*py:\d+"
    ):
        build(far)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("collections.OrderedDct", "collections has no 'OrderedDct'; did you mean 'OrderedDict'"),
        ("colections.OrderedDict", "no module named 'colections'"),
        ("Thingy", "which test_build does not define; did you mean 'Thing'"),
        ("collections.abc.x.y", "collections.abc has no 'x'"),
        ("math.pi", "which is 3.14"),
    ],
)
def test_a_target_that_does_not_exist_names_the_part_and_suggests(target, message):
    made: Any = type("Made", (Lazy,), {"__target__": target, "__module__": __name__})
    with pytest.raises(ConfigError, match=message):
        build(made())


def test_targets_may_be_classes_dotted_paths_generic_or_names_of_this_module():
    class Direct(Lazy[Decimal]):
        value: str = "2"

    class Generic(Lazy["collections.OrderedDict[str, int]"]):
        a: int = 1

    assert build(Value()) == Decimal("1")
    assert build(Direct()) == Decimal("2")
    assert build(Generic()) == OrderedDict(a=1)
    assert isinstance(build(Model()), Thing)


def test_an_inherited_target_is_looked_up_where_it_was_written():
    made: Any = type("Elsewhere", (Model,), {"__module__": "json"})
    assert isinstance(build(made()), Thing)


def test_a_class_without_a_target_says_what_to_write():
    class Nothing(Lazy[Any]):
        pass

    with pytest.raises(
        ConfigError, match=r'write class Nothing\(Lazy\["package.module.Thing"\]\) \(.*test_build.py:\d+\)'
    ):
        build(Nothing())


def test_a_factory_makes_a_new_object_at_each_call_with_the_context_its_target_declares():
    model = build(Model())
    one = model.norm(dim=4, layer_index=0)
    two = model.norm(dim=8, layer_index=1)
    assert isinstance(one, RMSNormModule)
    assert one is not two
    assert (one.dim, two.dim, one.eps) == (4, 8, 1e-5)
    attention = model.attention(dim=4, layer_index=3, num_heads=2)
    assert (attention.dim, attention.layer_index, attention.window) == (4, 3, 0)
    assert model.attention(dim=4, layer_index=4).norm(dim=1) is not attention.norm(dim=1)
    assert model.maybe is None
    assert repr(model.norm) == "LazyFactory(RMSNorm())"


def test_a_factory_of_a_name_that_only_checkers_know_is_still_a_factory():
    class Loose(Lazy["Thing"]):
        norm: Factory[Undefined] = RMSNorm()  # type: ignore[name-defined]  # noqa: F821

    assert callable(build(Loose()).norm)


def test_what_a_field_says_wins_over_the_context():
    class Fixed(Norm["RMSNormModule"]):
        dim: int = 99

    assert build(Model(norm=Fixed())).norm(dim=1).dim == 99


def test_a_cycle_alternates_over_the_layers():
    model = build(
        Model(attention=Cycle(Attention(window=5), Attention(), Cycle(Attention(window=7), Attention(window=9))))
    )
    windows = [model.attention(dim=1, layer_index=i).window for i in range(6)]
    assert windows == [5, 0, 7, 5, 0, 9]
    with pytest.raises(ConfigError, match="does not say its layer_index"):
        model.attention(dim=1)


def test_a_cycle_needs_options_of_the_right_kind_in_a_factory_field():
    with pytest.raises(
        ConfigError, match=r"Cycle\(\) needs at least one option: Cycle\(A\(\), B\(\)\) \(.*test_build.py:\d+\)"
    ):
        Cycle()
    with pytest.raises(ConfigError, match=r"expected Attention, got Cycle of RMSNorm\(\)"):
        Model(attention=Cycle(Attention(), RMSNorm()))  # type: ignore[arg-type]

    class Single(Lazy[Any]):
        norm: Norm = RMSNorm()

    with pytest.raises(
        ConfigError, match=r"got Cycle; alternating over layers needs a field annotated Factory\[Norm\]"
    ):
        Single(norm=Cycle(RMSNorm()))
    with pytest.raises(ConfigError, match=r"Cycle alternates over layers; it stands in a field annotated Factory"):
        build(Model(parts=(Cycle(RMSNorm()),)))


def test_a_cycle_can_be_copied_patched_and_evolved():
    cycle: Any = Cycle(Attention(window=1), Attention(window=2))
    assert attrs.evolve(cycle).options == cycle.options
    assert override(Model(attention=cycle), {"attention.options.0.window": "8"}).attention.options[0].window == 8  # type: ignore[attr-defined]


def test_a_call_builds_what_it_names_with_built_arguments():
    made = call(f"{__name__}:Thing", value=Value(), items=[1, {"a": 2}])
    built = build(made)
    assert (built.value, built.items) == (Decimal(1), (1, {"a": 2}))
    assert build(call("collections.OrderedDict", a=1)) == OrderedDict(a=1)
    with pytest.raises(ConfigError, match="has no 'OrderedDct'; did you mean"):
        build(call("collections:OrderedDct"))
    with pytest.raises(ConfigError, match="cannot be called"):
        build(call("math:pi"))
    with pytest.raises(ConfigError, match="'not a path', which is not a path"):
        build(call("not a path"))
    assert build(call(f"{__name__}:Thing", target=3)).target == 3


def test_a_call_in_a_factory_gets_the_context_its_target_declares():
    model = build(Model(norm=call(f"{__name__}:make", x=1)))
    assert model.norm(dim=3, layer_index=2) == {"x": 1, "dim": 3}
    assert model.norm(dim=3) is not model.norm(dim=3)


def test_runtime_arguments_reach_the_target_and_may_not_overlap_fields():
    assert build(RMSNorm(), dim=3).dim == 3
    with pytest.raises(
        ConfigError, match=r"build\(RMSNorm, ...\): eps is a field; set with replace\(x, eps=...\), not at build"
    ):
        build(RMSNorm(), dim=3, eps=1.0)


def test_arguments_that_the_target_does_not_take_are_a_config_error():
    with pytest.raises(
        ConfigError, match=r"RMSNorm builds RMSNormModule, which needs dim; .* annotate the field .* as Factory"
    ):
        build(RMSNorm())
    with pytest.raises(ConfigError, match=r"which takes no 'dimm'; did you mean 'dim'\?; needs dim"):
        build(RMSNorm(), dimm=3)


def test_a_failure_names_the_path_and_the_line_that_set_it():
    class Root(Lazy["Thing"]):
        model: Model = Model()

    class Mine(Root):
        model = patch(Model, parts=(Value(), Value(value="x")))  # the bad value

    with pytest.raises(Exception, match=r"InvalidOperation|ConversionSyntax") as raised:
        build(Mine())
    (note,) = raised.value.__notes__
    assert note.startswith("while building Mine.model.parts[1] (tests/dsl/test_build.py:")
    assert note.endswith("Value(value='x')")


def test_a_failure_inside_a_factory_names_the_path_too():
    model = build(Model(norm=RMSNorm()))
    with pytest.raises(ConfigError) as raised:
        model.norm()
    assert raised.value.__notes__[0].startswith("while building Model.norm: RMSNorm()")


def test_missing_values_stop_the_build():
    class Open(Lazy["Thing"]):
        x: int = REQUIRED

    with pytest.raises(MissingValue, match=r"Open\.x is required"):
        build(Open())


def test_validators_that_need_the_instance_are_asked_before_building():
    class Heads(Lazy["Thing"]):
        heads: int = 4
        kv_heads: int = attrs.field(default=4)

        @kv_heads.validator
        def _divides(self, attribute: Any, value: int) -> None:
            if self.heads % value:
                raise ValueError(f"{self.heads} heads for {value}")

    assert build(Heads(kv_heads=2)).kv_heads == 2
    with pytest.raises(ConfigError, match=r"Heads.kv_heads = 3: 4 heads for 3"):
        build(Heads(kv_heads=3))


def test_a_class_may_build_itself():
    class Own(Lazy[Any]):
        child: Value = Value()

        def __build__(self, build: Any, factor: int = 1) -> Any:
            return build(self.child) * factor

    class Holder(Lazy["Thing"]):
        own: Factory[Own] = Own()

    assert build(Own()) == Decimal(1)
    assert build(Own(), factor=3) == Decimal(3)
    assert build(Holder()).own(factor=2, layer_index=5) == Decimal(2)


def test_tuples_that_hold_no_lazy_arrive_as_they_are():
    class Point(NamedTuple):
        x: int
        y: int

    class Holder(Lazy["Thing"]):
        point: Any = Point(1, 2)
        table: Any = attrs.field(factory=lambda: None)

    built = build(Holder(table={"a": (Value(), 3)}))
    assert isinstance(built.point, Point)
    assert built.table == {"a": (Decimal(1), 3)}


def test_built_in_targets_that_do_not_tell_their_signature():
    class Plain(Lazy["builtins.dict"]):
        a: int = 1

    class Holder(Lazy["Thing"]):
        plain: Factory[Plain] = Plain()

    assert build(Plain()) == {"a": 1}
    assert build(Holder()).plain(layer_index=1)["a"] == 1


def test_only_a_lazy_can_be_built():
    with pytest.raises(ConfigError, match=r"expected an instance of a Lazy class, got .*; write Value\(\)"):
        build(Value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got 3"):
        build(3)  # type: ignore[arg-type]


def test_derived_values_are_built_like_any_other():
    class Root(Lazy["Thing"]):
        @derived
        def value(self) -> Value:
            return Value(value="7")

    assert build(Root()).value == Decimal(7)
    assert functools.reduce(lambda a, b: a + b, [build(Value())] * 2) == Decimal(2)
