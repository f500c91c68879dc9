"""From spec to plain functions: every kind of component, and what cannot be written, with its place."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn as nn

from forgather_dsl.dsl import Cycle, Factory, Lazy, build, call
from forgather_dsl.errors import UserError
from forgather_dsl.interop.builder import loaded, text_of
from forgather_dsl.specs import GroupedQueryAttention, LayerNorm, Llama, NormalInit, RMSNorm, SlidingWindow

SIZES: dict[str, Any] = {"vocab_size": 31, "dim": 16, "num_layers": 4, "num_heads": 2}


class Thing(nn.Module):
    """Remembers its arguments; calls what it is given as a factory."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.arguments = arguments
        self.made = [arguments["part"](dim=1, layer_index=i) for i in range(4)] if "part" in arguments else []


class Part:
    def __init__(self, dim: int, scale: Any) -> None:
        self.dim, self.scale = dim, scale

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Part) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]


class Holder:
    class Inner(Part):
        pass


class PartSpec(Lazy["Part"], runtime=("dim",)):
    scale: Any = 1.0


class ThingSpec(Lazy["Thing"]):
    part: Factory[PartSpec] = PartSpec()
    value: Any = None
    one: Any = None
    two: Any = None


class OwnBuild(PartSpec):
    def __build__(self, build: Any, dim: int) -> Part:
        return Part(dim, 3)


def body(model: Lazy[Any]) -> str:
    return text_of(model).text


def both(model: Any) -> tuple[Any, Any]:
    return loaded(body(model)).build(), build(model)


@pytest.mark.parametrize(
    "value",
    [
        1,
        -2.5,
        True,
        None,
        "a'\n\"b",
        (1, (2.0, "x"), ()),
        {"a": (1,), "b": {"c": None}},
        torch.bfloat16,
        math.sqrt,
        nn.GELU,
        Holder.Inner,
        len,
        frozenset({"x", "y"}),
    ],
)
def test_a_value_arrives_as_it_is(value: Any) -> None:
    ours, theirs = both(ThingSpec(value=value))
    assert ours.arguments["value"] == theirs.arguments["value"]
    assert type(ours.arguments["value"]) is type(theirs.arguments["value"])


def test_numbers_that_are_none_have_a_spelling() -> None:
    ours, _ = both(ThingSpec(value=(math.inf, -math.inf, math.nan)))
    assert ours.arguments["value"][:2] == (math.inf, -math.inf)
    assert math.isnan(ours.arguments["value"][2])


def test_a_component_is_a_call_and_one_of_two_fields_is_a_name() -> None:
    once = call("collections:OrderedDict", a=1)
    text = body(ThingSpec(value=NormalInit(std=0.5), one=once, two=once))
    assert "value=NormalInit(std=0.5, depth_scaled=False)" in text
    assert "    one = OrderedDict(a=1)\n" in text
    ours = loaded(text).build()
    assert ours.arguments["one"] is ours.arguments["two"]


def test_a_factory_is_a_function_of_what_it_was_called_with() -> None:
    text = body(Llama(**SIZES, norm=LayerNorm(bias=True), attention=GroupedQueryAttention(qk_norm=RMSNorm(eps=1e-6))))
    assert "def norm(dim, layer_index):\n    return LayerNorm(dim=dim, eps=1e-05, bias=True)\n" in text
    assert "def qk_norm(dim):\n    return RMSNorm(dim=dim, eps=1e-06)\n" in text
    assert "qk_norm=qk_norm, dropout=0.0)" in text
    assert text.index("def qk_norm") < text.index("def attention") < text.index("def build")


def test_a_cycle_is_a_choice_by_layer_the_most_frequent_last() -> None:
    text = body(Llama(**SIZES, norm=Cycle(RMSNorm(), RMSNorm(), LayerNorm(), RMSNorm())))
    assert "    if layer_index % 4 == 2:\n        return LayerNorm(dim=dim, eps=1e-05, bias=False)\n" in text
    assert "\n    return RMSNorm(dim=dim, eps=1e-05)\n" in text
    mixed = Llama(
        **SIZES, attention=Cycle(SlidingWindow(window=3), Cycle(SlidingWindow(window=4), SlidingWindow(window=5)))
    )
    ours, theirs = both(mixed)
    for mine, other in zip(ours.layers, theirs.layers):
        assert mine.self_attn.window == other.self_attn.window
    same = body(Llama(**SIZES, norm=Cycle(RMSNorm(), RMSNorm())))
    assert "layer_index %" not in same


def test_parts_are_made_anew_at_each_call_with_what_they_take() -> None:
    ours, theirs = both(ThingSpec(part=Cycle(PartSpec(scale=(1, 2)), PartSpec(scale="b"))))
    assert ours.made == theirs.made
    assert len({id(part) for part in ours.made}) == 4


def test_the_module_depends_on_the_text_alone() -> None:
    text = body(ThingSpec(value=5))
    assert loaded(text) is loaded(text)
    assert text == body(ThingSpec(value=5))
    assert "/" not in loaded(text).__name__


def local() -> Any:
    class Local(Part):
        pass

    return Local


def test_what_no_source_can_say_is_told_all_at_once_with_its_place() -> None:
    model = ThingSpec(value=lambda x: x, one=local(), two=object())
    with pytest.raises(UserError) as raised:
        body(model)
    told = str(raised.value)
    assert "value: a lambda has no name; write a function of the module" in told
    assert (
        "one: local.<locals>.Local is defined inside a function, where no import finds it; move it to its module"
        in told
    )
    assert "two: <object object at " in told
    assert "test_builder.py:" in told
    with pytest.raises(
        UserError, match=r"part: OwnBuild builds by its own __build__ \(.*test_builder.py:\d+\); name a class"
    ):
        body(ThingSpec(part=OwnBuild()))
