"""Hostile or broken JSON: reading runs nothing, what would run code is refused, and every refusal says what is wrong."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.dsl import (
    Call,
    ConfigError,
    Lazy,
    UnknownField,
    Untrusted,
    build,
    from_dict,
    override,
    replace,
    to_dict,
)
from forgather_dsl.dsl.build import LazyFactory

CALL = "forgather_dsl.dsl.special:Call"
CYCLE = "forgather_dsl.dsl.special:Cycle"
LAZY = "forgather_dsl.dsl.lazy:Lazy"


class Norm(Lazy["builtins.dict"]):
    eps: float = 1e-5


class Holder(Lazy["builtins.dict"]):
    norm: Norm | None = Norm()


@pytest.fixture
def witness(tmp_path, monkeypatch):
    """A file that hostile data tries to make, and a module that leaves it when imported."""
    made = tmp_path / "made"
    module = tmp_path / "evil_module.py"
    code = (
        f"open({str(made)!r}, 'w').close()\nfrom forgather_dsl.dsl import Lazy\nclass X(Lazy): ...\ndef f(**k): ...\n"
    )
    module.write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("WITNESS", str(made))
    importlib.invalidate_caches()
    yield {"path": str(module), "command": f"touch {made}"}
    assert not made.exists(), "the data ran code"
    assert "evil_module" not in sys.modules


HOSTILE: dict[str, Any] = {
    "a call of os.system": {"$type": CALL, "target": "os:system", "arguments": {"command": "COMMAND"}},
    "a call by its base": {
        "$type": "x:Mine",
        "$base": CALL,
        "target": "os:system",
        "arguments": {"command": "COMMAND"},
    },
    "a call with a target of its own": {"$type": CALL, "$target": "os.system", "target": "os.system"},
    "a call inside a factory": {
        "$type": "x:M",
        "$base": LAZY,
        "$target": "x",
        "f": {"$type": CALL, "target": "os:system"},
    },
    "a class from a file": {"$type": "PATH:X"},
    "a class from a file with a base": {"$type": "PATH:X", "$base": LAZY, "$target": "PATH:f"},
    "a class from a module": {"$type": "evil_module:X", "$base": LAZY},
    "a class of the standard library": {"$type": "subprocess:Popen", "args": ["COMMAND"]},
    "a module of the package that is not vocabulary": {"$type": "forgather_dsl.__main__:X"},
    "a way out of the package": {"$type": "forgather_dsl.dsl.load:os.system"},
    "a private name": {"$type": "forgather_dsl.dsl.special:Call.__init__"},
    "a class of the package that is no Lazy": {"$type": "forgather_dsl.dsl.build:LazyFactory", "lazy": 1},
    "a function of the package": {"$type": "forgather_dsl.dsl.load:load_class"},
    "a base out of the package": {"$type": "evil_module:X", "$base": "evil_module:X"},
    "a string for a type that lives in a file": {"$type": "x:M", "$base": LAZY, "f": {"$object": "PATH:f"}},
    "a target as a field": {"$type": CYCLE, "options": [], "__target__": "os.system"},
    "a hook as a field": {"$type": "x:M", "$base": LAZY, "__build__": "os.system"},
    "a target as an extra field": {"$type": "x:M", "$base": LAZY, "__target__": "os.system"},
    "a choice as a field": {"$type": "x:M", "$base": CYCLE, "options": [1], "__choose__": {"$object": "os:system"}},
}


def filled(data: Any, witness: dict[str, str]) -> Any:
    return json.loads(json.dumps(data).replace("PATH", witness["path"]).replace("COMMAND", witness["command"]))


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_data_runs_nothing_and_is_refused_at_the_latest_when_built(name, witness):
    with pytest.raises(ConfigError):
        build(from_dict(filled(HOSTILE[name], witness)))


def test_only_classes_that_this_package_defines_count_as_its_own(monkeypatch):
    monkeypatch.setattr(sys.modules["forgather_dsl.dsl.special"], "Mine", Norm, raising=False)
    monkeypatch.setattr(sys.modules["forgather_dsl.dsl.special"], "Alias", Call, raising=False)
    for name in ("Mine", "Alias"):
        with pytest.raises(Untrusted, match="is not a class that an experiment is made of"):
            from_dict({"$type": f"forgather_dsl.dsl.special:{name}"})


def test_a_call_from_data_refuses_through_every_copy(witness):
    data = filled(HOSTILE["a call of os.system"], witness)
    node = from_dict(data)
    holder = from_dict({"$type": "x:Holder", "$base": LAZY, "inner": data})
    copies = [
        node,
        replace(node, arguments={"command": "true"}),
        override(node, {"target": "os.abort"}),
        attrs.evolve(node),
        pickle.loads(pickle.dumps(node)),
        from_dict(to_dict(node)),
        holder.inner,
        override(holder, {"inner.command": "true"}).inner,
        pickle.loads(pickle.dumps(holder)).inner,
    ]
    for copy in copies:
        with pytest.raises(
            Untrusted, match=r"Call was read from data and would run what its target names; pass --trust"
        ):
            build(copy)
    assert type(pickle.loads(pickle.dumps(node))) is type(node)
    assert to_dict(node)["$type"] == CALL
    assert build(from_dict({"$type": CALL, "target": "builtins:dict", "arguments": {"a": 1}}, trust=True)) == {"a": 1}


def test_a_call_from_data_refuses_as_a_factory_too(witness):
    factory = LazyFactory(from_dict(filled(HOSTILE["a call of os.system"], witness)))
    with pytest.raises(Untrusted):
        factory(dim=1, layer_index=0)


def test_the_users_own_target_is_refused_without_trust_and_built_with_it():
    data = to_dict(Norm())
    assert data["$target"] == "builtins.dict"
    with pytest.raises(
        Untrusted, match=r"Norm was read from data and would run builtins.dict; pass --trust \(trust=True\)"
    ):
        build(from_dict(data))
    assert build(from_dict(data, trust=True)) == {"eps": 1e-5}
    lying = {key: value for key, value in data.items() if key != "$target"}
    with pytest.raises(ConfigError, match="does not say what it builds"):
        build(from_dict(lying))


def test_a_string_where_a_lazy_is_expected_names_no_code(witness, tmp_path):
    for text in (f"{witness['path']}:X", "evil_module:X", "Norm"):
        for data in ({"thing": text}, {"thing": [text]}):
            given_one = {"$type": "forgather_dsl.dsl.special:Cycle", "options": data["thing"]}
            with pytest.raises(ConfigError):
                build(from_dict(given_one))
    package_field = {**to_dict(Holder()), "norm": f"{witness['path']}:X"}
    with pytest.raises(ConfigError):
        build(from_dict(package_field))


def test_typed_fields_of_package_classes_take_no_strings_for_objects(witness):
    from forgather_dsl.dsl.structure import structure

    for annotation in (Norm, Norm | None, tuple[Norm, ...], Mapping[str, Norm]):
        for value in (f"{witness['path']}:X", [f"{witness['path']}:X"], {"a": f"{witness['path']}:X"}):
            with pytest.raises(ConfigError):
                structure(value, annotation, "here", text=False)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "not a written experiment: expected a JSON object"),
        ({}, r"expected a JSON object with \$type"),
        ("x", "not a written experiment"),
        ({"$type": 3}, r"the data: \$type, \$base and \$target are text"),
        ({"$type": ["x"]}, "are text"),
        ({"$type": "x:Y", "$base": {}}, "are text"),
        ({"$type": "os:path"}, r"the data: os:path is not a class of forgather_dsl; pass --trust \(trust=True\)"),
        ({"$type": ""}, "is not a class of forgather_dsl"),
        ({"$type": "forgather_dsl.dsl.special:Cal"}, "not a class that an experiment is made of"),
        ({"$type": "forgather_dsl.nowhere:X"}, "not a class that an experiment is made of"),
        ({"$type": "forgather_dsl.specs.nowhere:X"}, "not a class that an experiment is made of"),
        (
            {"$type": CALL, "targett": "x"},
            "targett: Call of this version has no field 'targett'; did you mean 'target'",
        ),
        ({"$type": CALL, "target": 3}, "Call.target: expected str, got 3|target = 3: expected str"),
        ({"$type": CALL, "target": None}, "expected str"),
        ({"$type": CALL, "arguments": [1]}, "arguments"),
        (
            {"$type": CALL, "arguments": {"a": {"$ref": "nowhere"}}},
            r"arguments\['a'\]: refers to 'nowhere', which the data does not",
        ),
        ({"$type": CALL, "arguments": {"a": {"$ref": ""}}}, "refers to ''"),
        ({"$type": CALL, "arguments": {"a": {"$ref": ["x"]}}}, "refers to"),
        ({"$type": CALL, "arguments": {"a": {"$object": 3}}}, r"'\$object' means nothing here"),
        ({"$type": CALL, "arguments": {"a": {"$float": "1e400x"}}}, r"'\$float' means nothing here"),
        ({"$type": CALL, "arguments": {"a": {"$what": 1}}}, r"'\$what' means nothing here; known are \$type"),
        ({"$type": CYCLE, "options": []}, "Length of 'options' must be >= 1"),
        ({"$type": CYCLE, "options": "x"}, "options"),
        ({"$type": "x:not a name", "$base": LAZY}, "'not a name' is not a name"),
        ({"$type": "x:Y", "$base": LAZY, "a b": 1}, "'a b' is not a name that a class or field can have"),
        ({"$type": "x:Y", "$base": LAZY, "__class__": 1}, "'__class__' is not a name"),
    ],
    ids=str,
)
def test_broken_data_says_what_is_wrong(data, message):
    with pytest.raises(ConfigError, match=message):
        from_dict(data)


def test_every_problem_of_the_data_is_reported_at_once():
    with pytest.raises(ConfigError) as raised:
        from_dict({"$type": CALL, "target": 3, "argumentz": 1, "arguments": {"a": {"$ref": "x"}}})
    assert len(raised.value.problems) == 3
    with pytest.raises(UnknownField):
        from_dict({"$type": CALL, "argumentz": 1})


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}, lambda x: {"$type": CYCLE, "options": [x]}])
@pytest.mark.parametrize("depth", [200, 100_000])
def test_deep_nesting_is_refused(wrap, depth):
    data: Any = 1
    for _ in range(depth):
        data = wrap(data)
    with pytest.raises(ConfigError, match="nested more than 100 deep"):
        from_dict({"$type": CALL, "arguments": {"a": data}})
    while isinstance(data, (list, dict)) and data:  # undo it flat: dropping it at once would recurse
        data = data[0] if isinstance(data, list) else data.get("a", data.get("options"))


def test_numbers_too_long_to_be_numbers_are_refused():
    with pytest.raises(ConfigError, match=r"expected str") as raised:
        from_dict({"$type": CALL, "target": [0] * 100_000})
    assert len(str(raised.value)) < 1000


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["$type", "$ref", "$base", "$target", "$object", "$float", "target", "arguments", "options", "x"]
            ),
            inner | st.sampled_from([CALL, CYCLE, LAZY, "os:system", "x:Y", "", "target"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_values)
@settings(max_examples=150, deadline=None)
def test_any_json_is_read_or_refused_with_our_own_error(data):
    try:
        made = from_dict(data)
    except ConfigError:
        return
    assert isinstance(made, Lazy)
    assert from_dict(data) == made


def test_reading_data_imports_no_torch_and_no_file():
    code = (
        "import sys, json; from forgather_dsl.dsl import *;"
        f"from_dict({{'$type': {CALL!r}, 'target': 'torch:zeros', 'arguments': {{'a': {{'$object': 'torch:ones'}}}}}})\n"
        "refused = []\n"
        "for name in ('models.norms:RMSNorm', '__main__:X', 'nowhere:X'):\n"
        "    try: from_dict({'$type': 'forgather_dsl.' + name})\n"
        "    except Untrusted: refused.append(name)\n"
        "assert len(refused) == 3\n"
        "assert not {'forgather_dsl.models', 'forgather_dsl.__main__'} & set(sys.modules)\n"
        "print('torch' in sys.modules, 'cattrs' in sys.modules)"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": root}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["False", "False"]
