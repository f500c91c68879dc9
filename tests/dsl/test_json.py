"""JSON round trips exactly; hostile or broken JSON executes nothing and says what is wrong."""

from __future__ import annotations

import enum
import json
import math
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import attrs
import pytest

from forgather_dsl.dsl import (
    ConfigError,
    Cycle,
    Factory,
    Lazy,
    Untrusted,
    build,
    call,
    check,
    derived,
    digest,
    from_dict,
    graph,
    load,
    override,
    patch,
    snapshot,
    to_dict,
)

CALL = "forgather_dsl.dsl.special:Call"
CYCLE = "forgather_dsl.dsl.special:Cycle"
LAZY = "forgather_dsl.dsl.lazy:Lazy"


class Colour(enum.Enum):
    red = "r"


class Norm(Lazy["builtins.dict"]):
    eps: float = 1e-5


class Tokenizer(Lazy["builtins.dict"]):
    vocab: int = 10


class Model(Lazy["builtins.dict"]):
    dim: int = 8
    norm: Factory[Norm] | None = Norm()
    layers: tuple[Norm, ...] = (Norm(), Norm(eps=1))
    attention: Factory[Norm] = Cycle(Norm(), Norm(eps=2))

    @derived
    def ffn(self) -> int:
        return self.dim * 4


class Root(Lazy["builtins.dict"]):
    seq_len: int = 128
    ratio: float = 1
    rate: float | None = None
    inf: float = math.inf
    either: int | str = "12"
    path: Path = Path("a/b")
    colour: Colour = Colour.red
    names: frozenset[str] = frozenset("ab")
    table: Mapping[str, Any] = MappingProxyType({"a": (1, 2), "b": MappingProxyType({"c": None})})
    function: Callable[..., Any] = math.sqrt
    kind: type = dict
    thing: Any = call("collections:OrderedDict", x=Norm(), y=(1, "z"))
    betas: tuple[float, float] = (0, 1)
    text: str = "false"
    converted: int = attrs.field(default=3, converter=lambda n: n * 2)

    @derived
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(vocab=self.seq_len)

    @derived
    def model(self) -> Model:
        return Model()

    @derived
    def again(self) -> Tokenizer:
        return self.tokenizer


def through_json(root: Any, **options: Any) -> Any:
    return from_dict(json.loads(json.dumps(to_dict(root))), **options)


@pytest.mark.parametrize(
    "root", [Root(), override(Root(), {"seq_len": "9", "model.dim": "4", "rate": "1e-4"})], ids=["plain", "set"]
)
def test_a_trusted_round_trip_is_exact(root):
    back = through_json(root, trust=True)
    assert type(back) is Root
    assert back == root
    assert snapshot(back) == snapshot(root)
    assert digest(back) == digest(root)
    assert back.again is back.tokenizer
    assert graph(back).edges == graph(root).edges
    assert to_dict(back) == to_dict(root)
    assert back.thing.arguments["x"] == Norm()
    assert callable(build(back)["function"])


def test_an_untrusted_round_trip_prints_and_compares_alike():
    root = Root()
    back = through_json(root)
    assert snapshot(back) == snapshot(root)
    assert digest(back) == digest(root)
    assert to_dict(back) == to_dict(root)
    assert through_json(back) == back
    assert type(back) is not Root
    assert type(back).__name__ == "Root"
    assert back.again is back.tokenizer
    check(back)


def test_an_inert_copy_of_package_parts_still_builds():
    class Mine(Lazy[Any]):
        pass

    data = {"$type": f"{LAZY}", "$base": LAZY}
    with pytest.raises(ConfigError, match="does not say what it builds"):
        build(from_dict(data))


def test_every_value_is_written_so_that_defaults_may_change():
    data = to_dict(Root())
    assert data["ratio"] == 1.0
    assert data["model"]["ffn"] == 32
    assert data["again"] == {"$ref": "tokenizer"}
    assert data["inf"] == {"$float": "inf"}
    assert data["function"] == {"$object": "math:sqrt"}
    assert json.loads(json.dumps(data)) == data
    assert "Infinity" not in json.dumps(data)


def test_a_value_without_a_name_cannot_be_written():
    """Edge 25, continued: a lambda is allowed as a value, and says so when it must be written."""
    with pytest.raises(ConfigError, match=r"function = <function .*lambda.* has no name that a file could hold"):
        to_dict(Root(function=lambda x: x))
    with pytest.raises(ConfigError, match=r"table: the key '\$type' cannot be written"):
        to_dict(Root(table={"$type": CALL}))


def test_the_type_of_a_subclass_survives_a_field_of_the_base_type():
    """Edge 12, continued: cattrs reads every subclass back as the base."""

    root = Root(thing=Wide())
    assert type(through_json(root, trust=True).thing) is Wide
    assert through_json(root).thing.extra == 7


class Wide(Norm):
    extra: int = 7


def test_a_trusted_class_that_is_gone_becomes_inert_unless_it_brought_code():
    data = {"$type": "gone.module:Mine", "$base": LAZY, "x": 1}
    assert from_dict(data, trust=True).x == 1
    with pytest.raises(ConfigError, match=r"no module or file named 'gone.module'"):
        from_dict({**data, "$target": "gone.module:Thing"}, trust=True)
    with pytest.raises(ConfigError, match="collections:OrderedDict is not a Lazy class"):
        from_dict({"$type": "collections:OrderedDict"}, trust=True)


def test_user_hooks_count_as_code_of_their_own(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from forgather_dsl.dsl import Lazy\n"
        "class Mine(Lazy):\n    x: int = 1\n    def __build__(self, build, **runtime): return self.x\n"
        "class Plain(Lazy):\n    x: int = 1\n"
    )
    mine = load(f"{file}:Mine")()
    assert build(mine) == 1
    data = to_dict(mine)
    assert data["$target"] == data["$type"] == f"{file}:Mine"
    with pytest.raises(Untrusted):
        build(from_dict(data))
    assert "$target" not in to_dict(load(f"{file}:Plain")())


def test_a_patch_written_in_a_class_is_written_as_what_it_came_to():
    class Mine(Root):
        model = patch(Model, dim=2, norm=None)

    data = to_dict(Mine())
    assert data["model"]["dim"] == 2
    assert data["model"]["norm"] is None
    assert data["model"]["ffn"] == 8


def test_code_named_as_a_value_has_a_name_and_refuses_to_run():
    back = through_json(Root())
    assert repr(back.function) == "math:sqrt"
    with pytest.raises(Untrusted, match="math:sqrt was named by data and not imported"):
        back.function(4)
    assert pickle.loads(pickle.dumps(back)).function == back.function
    assert through_json(Root(), trust=True).function is math.sqrt
