"""`override` with text and JSON: parsed strictly against annotations, typed first, in any order, all problems at once."""

from __future__ import annotations

import enum
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.dsl import (
    REQUIRED,
    ConfigError,
    Cycle,
    Factory,
    Lazy,
    PatchError,
    UnknownField,
    call,
    check,
    derived,
    diff,
    digest,
    override,
    patch,
    replace,
    snapshot,
)

if TYPE_CHECKING:
    from decimal import Decimal

T = TypeVar("T")


class Optimizer(Lazy[T], abstract=True):
    lr: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0))


class AdamW(Optimizer["torch.optim.AdamW"]):
    betas: tuple[float, float] = (0.9, 0.95)


class Muon(Optimizer["torch.optim.Muon"]):
    lr = 0.02
    momentum: float = 0.95
    nesterov: bool = True


class Norm(Lazy[T], abstract=True):
    eps: float = 1e-5


class RMSNorm(Norm["x.RMSNorm"]):
    pass


class LayerNorm(Norm["x.LayerNorm"]):
    bias: bool = True


class Attention(Lazy[Any]):
    heads: int = 2
    kind: Literal["sdpa", "flex", 3] = "sdpa"
    norm: Factory[Norm] | None = RMSNorm()


class Window(Attention):
    window: int = 16


class Model(Lazy[Any]):
    dim: int = REQUIRED
    max_seq_len: int = 1
    attention: Factory[Attention] = Attention()

    @derived
    def ffn(self) -> int:
        return 4 * self.dim


class Colour(enum.Enum):
    red = "r"


def size(value: Any) -> Any:
    return int(value[:-1]) * 1024 if isinstance(value, str) and value.endswith("k") else value


class Root(Lazy[Any]):
    seq_len: int = 128
    optimizer: Optimizer = AdamW(lr=3e-4)
    steps: int | None = None
    size: int = attrs.field(default=1, converter=size)
    paths: tuple[Path, ...] = ()
    names: tuple[str, ...] = ("a",)
    layers: tuple[Attention, ...] = (Attention(heads=1), Window())
    either: int | str = 1
    table: Mapping[str, float] = MappingProxyType({"x": 1})
    colour: Colour = Colour.red
    anything: Any = None
    price: Decimal | None = None
    function: Callable[..., Any] = abs
    flag: bool = False
    empty: Model = REQUIRED

    @derived
    def model(self) -> Model:
        return Model(dim=8, max_seq_len=self.seq_len)


@pytest.mark.parametrize(
    ("path", "text", "value"),
    [
        ("flag", "true", True),
        ("flag", "off", False),
        ("flag", "0", False),
        ("optimizer.lr", "1e-4", 1e-4),
        ("optimizer.lr", "2", 2.0),
        ("seq_len", "4_096", 4096),
        ("seq_len", "1e3", 1000),
        ("seq_len", "0x10", 16),
        ("seq_len", "010", 10),
        ("steps", "none", None),
        ("steps", "5", 5),
        ("names", "x, y", ("x", "y")),
        ("names", "['x', 'y']", ("x", "y")),
        ("names", "", ()),
        ("optimizer.betas", "0.8,1", (0.8, 1.0)),
        ("paths", "a,b", (Path("a"), Path("b"))),
        ("either", "3", 3),
        ("either", "three", "three"),
        ("model.attention.kind", "flex", "flex"),
        ("model.attention.kind", "3", 3),
        ("model.attention.norm", "none", None),
        ("table", '{"x": 2}', {"x": 2.0}),
        ("table.y", "3", {"x": 1.0, "y": 3.0}),
        ("anything", "[1, 2]", (1, 2)),
        ("anything", "word", "word"),
        ("colour", "r", Colour.red),
        ("size", "4k", 4096),
        ("size", "7", 7),
        ("names.0", "12", ("12",)),
        ("layers[1].window", "4", 4),
        ("layers.0.heads", "9", 9),
    ],
)
def test_text_is_parsed_against_the_annotation(path, text, value):
    """Edge 13: YAML reads 1e-4 as text and `on` as True; here the annotation decides."""
    changed = override(Root(empty=Model(dim=1)), {path: text})
    at: Any = changed
    for part in path.replace("[", ".").replace("]", "").split("."):
        if isinstance(at, (tuple, Mapping)) and not isinstance(value, (tuple, dict)):
            at = at[int(part)]
        elif isinstance(at, Lazy):
            at = getattr(at, part)
    assert at == value
    assert type(at) is type(value) or isinstance(value, dict)
    assert repr(at) == repr(value) or isinstance(value, dict)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("flag", "maybe", r"flag = 'maybe': expected bool \(write true or false\)"),
        ("flag", 1, "expected bool"),
        ("seq_len", 3.7, r"seq_len = 3.7: expected int \(not a whole number\)"),
        ("seq_len", "3.7", "not a whole number"),
        ("seq_len", "4k", r"seq_len = '4k': expected int \(write a number\)"),
        ("seq_len", True, r"expected int \(write a whole number\)"),
        ("seq_len", "inf", "not a whole number"),
        ("steps", "x", r"expected int \| None"),
        ("optimizer.lr", "fast", r"optimizer.lr = 'fast': expected float \(write a number\)"),
        ("optimizer.lr", "-1", r"optimizer.lr: AdamW.lr = -1.0: 'lr' must be > 0"),
        ("optimizer.lr", [], "expected float"),
        ("optimizer.betas", "1,2,3", r"expected tuple\[float, float\] \(2 items, not 3\)"),
        ("optimizer.betas", "[1,", r"write a list: a,b or \[a, b\]"),
        ("names", 3, "write a list"),
        ("names", [3], r"write a string"),
        ("model.attention.kind", "flax", "'flax' is not one of 'sdpa', 'flex', 3; did you mean 'flex'"),
        ("colour", "green", "expected Colour"),
        ("function", "abs", "function = 'abs': expected Callable.*cannot be written as text; set the field in a class"),
        ("price", "3", r"annotation 'Decimal \| None' cannot be evaluated here .*TYPE_CHECKING"),
        ("table", "x=2", r"write a JSON object"),
        ("table.y", "z", r"table.y = 'z': expected float"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_what_to_write(path, value, message):
    """Edge 12: cattrs alone takes 'false' for True and 3.7 for 3."""
    with pytest.raises(ConfigError, match=message):
        override(Root(), {path: value})


def test_a_name_that_only_type_checkers_know_is_explained_when_text_must_be_parsed():
    """Edge 14, continued: only the one field suffers."""
    assert override(Root(), {"seq_len": "3"}).seq_len == 3
    with pytest.raises(
        ConfigError, match=r"name 'Decimal' is not defined\); it is probably imported under TYPE_CHECKING"
    ):
        override(Root(), {"price": "1"})


def test_the_name_of_a_type_is_a_swap():
    changed = override(Root(), {"optimizer": "Muon"})
    assert type(changed.optimizer) is Muon
    assert (changed.optimizer.lr, changed.optimizer.momentum) == (3e-4, 0.95)
    assert type(override(Root(), {"optimizer": "Muon()"}).optimizer) is Muon
    assert override(Root(), {"optimizer": "AdamW"}).optimizer.lr == 3e-4


def test_an_object_replaces_and_a_mapping_names_its_type():
    assert override(Root(), {"optimizer": Muon()}).optimizer.lr == 0.02
    norm = {"$type": "forgather_dsl.dsl.special:Cycle"}
    with pytest.raises(ConfigError, match="Cycle is not an Optimizer"):
        override(Root(), {"optimizer": norm})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("optimiser", "1", "optimiser: Root has no field 'optimiser'; did you mean 'optimizer'"),
        ("optimizer.lrr", "1", "optimizer.lrr: AdamW has no field 'lrr'; did you mean 'lr'"),
        ("optimizer", "Mun", "optimizer: no Optimizer called 'Mun'; did you mean 'Muon'"),
        ("optimizer", "muon", "did you mean 'Muon'"),
        ("optimizer", "Optimizer", "no Optimizer called 'Optimizer'; there are: AdamW, Muon"),
        ("optimizer", "Muon(lr=3)", "write the name alone, Muon, and set its fields as paths below"),
        ("optimizer", "3", "no Optimizer called '3'; there are: AdamW, Muon"),
        ("optimizer", 3, "write the name of an Optimizer"),
        ("optimizer", "nowhere.py:Muon", "no file nowhere.py"),
        ("optimizer", "json:JSONDecoder", "JSONDecoder is not an Optimizer"),
        ("model.attention.norm", "Window", "no Norm called 'Window'"),
        ("seq_len.x", "1", "seq_len.x: seq_len is 128, which has nothing below it"),
        ("layers.7.heads", "1", "layers.7: layers has 2 items, numbered from 0"),
        ("layers.x", "1", "layers.x: layers has 2 items"),
        ("layers.0.window", "1", "layers.0.window: Attention has no field 'window'"),
        ("", "1", "'' is not a path; write field.field"),
        ("a..b", "1", "'a..b' is not a path"),
        ("a[0", "1", r"'a\[0' is not a path"),
    ],
)
def test_paths_and_names_that_do_not_exist_come_with_suggestions(path, value, message):
    with pytest.raises(ConfigError, match=message):
        override(Root(), {path: value})


def test_every_problem_of_a_call_is_reported_at_once():
    with pytest.raises(ConfigError) as raised:
        override(Root(), {"optimiser": "1", "seq_len": "4k", "optimizer.lrr": "1", "optimizer.lr": "x", "flag": "2"})
    assert len(raised.value.problems) == 5
    for path in ("optimiser:", "seq_len =", "optimizer.lrr:", "optimizer.lr =", "flag ="):
        assert any(problem.startswith(path) for problem in raised.value.problems)


OVERLAYS: dict[str, Any] = {
    "seq_len": "512",
    "optimizer": "Muon",
    "optimizer.lr": "1e-2",
    "optimizer.momentum": "0.5",
    "optimizer.nesterov": "false",
    "model.dim": "16",
    "model.attention": "Window",
    "model.attention.window": "3",
    "model.attention.heads": "5",
    "model.attention.norm": "LayerNorm",
    "model.attention.norm.bias": "no",
    "model.attention.norm.eps": "1",
    "layers.0.heads": "7",
    "layers.1.window": "8",
    "empty.dim": "3",
    "table.y": "2",
    "steps": "9",
    "anything": {"a": [1]},
}


@given(st.sets(st.sampled_from(sorted(OVERLAYS))), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_order_of_overlays_does_not_matter(names, generator: random.Random):
    needs = {
        "optimizer.momentum": "optimizer",
        "optimizer.nesterov": "optimizer",
        "model.attention.window": "model.attention",
    }
    needs["model.attention.norm.bias"] = "model.attention.norm"
    names = names | {needs[name] for name in names if name in needs}
    chosen = [(name, OVERLAYS[name]) for name in sorted(names)]
    shuffled = list(chosen)
    generator.shuffle(shuffled)
    start = Root(empty=Model(dim=1)) if "empty.dim" not in names else Root()
    if "empty.dim" not in names:
        assert digest(override(start, dict(chosen))) == digest(override(start, dict(shuffled)))
    one, other = override(start, dict(chosen)), override(start, dict(shuffled))
    full = [replace(x, empty=Model(dim=1)) if "empty.dim" not in names else x for x in (one, other)]
    assert full[0] == full[1]
    assert snapshot(full[0]) == snapshot(full[1])


@given(st.permutations(["seq_len", "optimizer.lr", "model.dim", "model.attention.heads", "steps", "table.y"]))
@settings(max_examples=20, deadline=None)
def test_one_call_and_many_calls_agree(names):
    start = Root(empty=Model(dim=1))
    step = start
    for name in names:
        step = override(step, {name: OVERLAYS[name]})
    assert snapshot(step) == snapshot(override(start, {name: OVERLAYS[name] for name in names}))


def test_overlays_reach_derived_values_whatever_came_first():
    changed = override(override(Root(), {"model.dim": "16"}), {"seq_len": "9"})
    assert (changed.model.dim, changed.model.ffn, changed.model.max_seq_len) == (16, 64, 9)


def test_a_later_overlay_wins_over_an_earlier_one():
    changed = override(override(Root(), {"seq_len": "1", "optimizer.lr": "1"}), {"seq_len": "2", "optimizer.lr": "2"})
    assert (changed.seq_len, changed.optimizer.lr) == (2, 2.0)


def test_overlays_apply_over_what_an_instance_was_given():
    given_one = Root(optimizer=AdamW(lr=1.0, betas=(0.1, 0.2)), seq_len=7)
    changed = override(given_one, {"optimizer.lr": "2", "seq_len": "8"})
    assert (changed.optimizer.lr, changed.optimizer.betas, changed.seq_len) == (2.0, (0.1, 0.2), 8)
    patched = override(Root(optimizer=patch(Optimizer, lr=5.0)), {"optimizer": "Muon", "optimizer.momentum": "0.1"})
    assert (patched.optimizer.lr, patched.optimizer.momentum) == (5.0, 0.1)
    whole = replace(given_one, empty=Model(dim=1))
    changed = override(whole, {"optimizer.lr": "2", "seq_len": "8"})
    assert [d.path for d in diff(whole, changed)] == ["seq_len", "optimizer.lr", "model.max_seq_len"]


def test_a_field_that_nothing_fills_takes_leaves_when_its_type_is_known():
    assert override(Root(), {"empty.dim": "5"}).empty.dim == 5

    class Open(Lazy[Any]):
        optimizer: Optimizer = REQUIRED

    with pytest.raises(ConfigError, match=r"optimizer.lr: nothing fills optimizer yet; set it to an Optimizer first"):
        override(Open(), {"optimizer.lr": "1"})
    assert override(Open(), {"optimizer.lr": "1", "optimizer": "AdamW"}).optimizer.lr == 1.0


def test_what_is_missing_elsewhere_does_not_stop_an_overlay():
    class Half(Lazy[Any]):
        seq_len: int = REQUIRED

        @derived
        def model(self) -> Model:
            return Model(dim=1, max_seq_len=self.seq_len)

    half = override(Half(), {"model.dim": "4"})
    assert override(half, {"seq_len": "3"}).model.dim == 4


def test_arguments_of_a_call_and_options_of_a_cycle_can_be_set():
    class Wild(Lazy[Any]):
        thing: Any = call("pkg.mod:fn", x=1, norm=RMSNorm())
        layers: Factory[Attention] = Cycle(Attention(), Window())

    changed = override(
        Wild(), {"thing.x": "2", "thing.y": "new", "thing.norm.eps": "1", "layers.options.1.window": "4"}
    )
    assert changed.thing.arguments["x"] == 2
    assert changed.thing.arguments["y"] == "new"
    assert changed.thing.arguments["norm"].eps == 1.0
    assert changed.layers.options[1].window == 4  # type: ignore[attr-defined]


def test_an_overlay_of_a_mixin_keeps_its_patch_error():
    class Mixin(Root):
        optimizer = patch(Muon, momentum=0.1)

    with pytest.raises(PatchError, match="does not apply"):
        override(Mixin(), {"optimizer.lr": "1"})


def test_an_unknown_name_below_an_unknown_name_is_one_problem():
    with pytest.raises(UnknownField) as raised:
        override(Root(), {"modle.dim": "1", "modle.ffn": "2"})
    assert len(raised.value.problems) == 1


def test_checks_after_overlays_find_nothing_to_say():
    check(override(Root(), {"empty.dim": "2", "optimizer": "Muon"}))
