"""Provenance, differences, snapshots and digests: what is said about a configuration agrees with what it is."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, TypeVar

import attrs
import pytest

from forgather_dsl.dsl import (
    REQUIRED,
    ConfigError,
    Difference,
    Factory,
    Lazy,
    Said,
    call,
    derived,
    diff,
    digest,
    explain,
    graph,
    load,
    override,
    patch,
    replace,
    snapshot,
    swap,
)
from forgather_dsl.dsl.compare import leaves
from forgather_dsl.dsl.errors import title
from forgather_dsl.dsl.graph import dot, mermaid

T = TypeVar("T")
HERE = "tests/dsl/test_explain_diff.py"


class Norm(Lazy[T]):
    eps: float = 1e-5


class Attention(Lazy[Any]):
    heads: int = 2
    norm: Factory[Norm] = Norm()

    @derived
    def width(self) -> int:
        return 2 * self.heads


class Optimizer(Lazy[T], abstract=True):
    lr: float = 1e-3


class AdamW(Optimizer["a.AdamW"]):
    beta: float = 0.9


class Muon(Optimizer["a.Muon"]):
    lr = 0.02
    momentum: float = 0.95


class Model(Lazy[Any]):
    dim: int = REQUIRED
    max_seq_len: int = 1
    attention: Attention = Attention(heads=3)


class Base(Lazy[Any]):
    seq_len: int = 128
    optimizer: Optimizer = AdamW(lr=3e-4)
    layers: tuple[Attention, ...] = (Attention(), Attention(heads=7))
    thing: Any = call("a.b:c", x=1)

    @derived
    def model(self) -> Model:
        return Model(dim=8, max_seq_len=self.seq_len)

    @derived
    def twin(self) -> Norm:
        return self.model.attention.norm


class Wide(Base):
    model = patch(Model, dim=16, attention=patch(Attention, norm=Norm(eps=0.5)))


class Heads(Wide):
    seq_len = 64
    model = patch(Model, attention=patch(Attention, heads=9))


class Fast(Heads):
    optimizer = swap(Muon, momentum=0.5)


class Plain(Fast):
    optimizer = AdamW()
    model = patch(Model, attention=Attention())


class Computes(Fast):
    @derived
    def model(self) -> Model:
        return replace(super().model, dim=self.seq_len)


def says(root: Any, path: str) -> list[tuple[str, str]]:
    return [(said.value, said.who) for said in explain(root, path)]


def test_explain_lists_every_say_the_winner_first_with_lines():
    said = explain(Heads(), "seq_len")
    assert [(s.value, s.who) for s in said] == [("64", "Heads"), ("128", "Base")]
    lines = Path(__file__).read_text().splitlines()
    assert said[0].where == f"{HERE}:{lines.index('    seq_len = 64') + 1}"
    assert said[1].where == f"{HERE}:{lines.index('    seq_len: int = 128') + 1}"


def test_lines_of_values_assigned_together_are_found():
    class Together(Base):
        "Two at once."

        seq_len, thing = 5, None

    lines = Path(__file__).read_text().splitlines()
    number = lines.index("        seq_len, thing = 5, None") + 1
    assert explain(Together(), "thing")[0] == Said("None", title(Together), f"{HERE}:{number}")


def test_explain_follows_patches_and_derived_values_down_to_the_default():
    assert says(Heads(), "model.attention.heads") == [("9", "Heads"), ("3", "Model"), ("2", "Attention")]
    assert says(Heads(), "model.dim") == [("16", "Wide"), ("8", "computed by Base.model"), ("REQUIRED", "Model")]
    assert says(Heads(), "model.max_seq_len") == [("64", "computed by Base.model"), ("1", "Model")]
    assert says(Heads(), "model.attention.norm.eps") == [("0.5", "Wide"), ("1e-05", "Norm")]
    assert says(Heads(), "layers[1].heads") == says(Heads(), "layers.1.heads") == [("7", "Base"), ("2", "Attention")]
    assert says(Heads(), "model.attention.width") == [("computed", "Attention")]


def test_an_assignment_silences_what_it_replaced():
    assert says(Plain(), "optimizer.lr") == [("0.001", "Optimizer")]
    assert says(Plain(), "model.attention.heads") == [("2", "Attention")]
    assert says(Plain(), "optimizer")[0] == ("AdamW()", "Plain")


def test_a_swap_keeps_the_say_of_what_it_kept():
    assert says(Fast(), "optimizer.lr") == [("0.0003", "Base"), ("0.02", "Muon"), ("0.001", "Optimizer")]
    assert says(Fast(), "optimizer.momentum") == [("0.5", "Fast"), ("0.95", "Muon")]


def test_a_derived_override_is_named_with_its_class():
    said = explain(Computes(), "model.dim")
    assert (said[0].value, said[0].who) == ("64", "computed by Computes.model")
    assert says(Computes(), "model")[0] == ("computed", "Computes")


def test_overlays_and_instances_have_their_say():
    changed = override(Heads(optimizer=patch(Optimizer, lr=0.5)), {"optimizer.lr": "1e-5", "model.dim": "32"})
    assert says(changed, "optimizer.lr")[:3] == [("1e-05", "--set"), ("0.5", "given"), ("0.0003", "Base")]
    assert says(changed, "model.dim")[:2] == [("32", "--set"), ("16", "Wide")]
    assert explain(changed, "optimizer.lr")[1].where.startswith(HERE)
    assert says(override(changed, {"optimizer": "Muon"}), "optimizer")[0] == ("Muon(lr=1e-05)", "--set")
    called = override(Heads(), {"thing.x": "3"})
    assert says(called, "thing.arguments.x") == [("3", "--set"), ("1", "Base")]
    assert says(called, "thing.arguments")[0] == ("{'x': 3}", "--set")
    given_one = override(Heads(seq_len=3), {"seq_len": "5"})
    assert says(given_one, "seq_len") == [("5", "--set"), ("3", "given"), ("64", "Heads"), ("128", "Base")]


EXAMPLES = [
    Base(),
    Wide(),
    Heads(),
    Fast(),
    Plain(),
    Computes(),
    Fast(seq_len=3, model=patch(Model, dim=2)),
    Fast(optimizer=Muon(lr=5.0)),
    override(Fast(), {"optimizer": "AdamW", "optimizer.lr": "2", "model.attention.heads": "4", "layers.0.heads": "6"}),
    override(Computes(), {"seq_len": "7", "model.attention.norm.eps": "0.25", "thing.x": "3"}),
    replace(Heads(), optimizer=swap(Muon), model=Model(dim=1, attention=patch(Attention, heads=5))),
]


@pytest.mark.parametrize("root", EXAMPLES, ids=map(repr, EXAMPLES))
def test_the_winner_that_explain_names_is_the_value_that_holds(root):
    for path, text in leaves(root).items():
        if not path or text.startswith("the same as") or isinstance(functools.reduce(_step, _parts(path), root), Lazy):
            continue
        said = explain(root, path)
        assert said, path
        assert said[0].value in (text, "computed"), path


def _parts(path: str) -> list[str]:
    return path.replace("['", ".").replace("']", "").replace("[", ".").replace("]", "").split(".")


def _step(value: Any, part: str) -> Any:
    if isinstance(value, tuple):
        return value[int(part)]
    return getattr(value, part) if isinstance(value, Lazy) else value[part]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("modle.dim", "modle: Heads has no field 'modle'; did you mean 'model'"),
        ("model.dimm", "model.dimm: Model has no field 'dimm'; did you mean 'dim'"),
        ("model.dim.x", "model.dim.x: 16 has nothing below it"),
        ("layers.9", "layers.9: there are 2 items"),
        ("thing.arguments.y", "no key 'y'"),
        ("", "is not a path"),
    ],
)
def test_a_path_that_does_not_exist_is_refused(path, message):
    with pytest.raises(ConfigError, match=message):
        explain(Heads(), path)


def test_explain_takes_an_instance():
    with pytest.raises(ConfigError, match=r"write Heads\(\)"):
        explain(Heads, "seq_len")  # type: ignore[arg-type]


def test_lines_are_found_in_a_notebook_and_survive_where_there_is_no_source():
    import linecache

    source = "class Cell(Base):\n    seq_len = 5\n    model = patch(Model, dim=3)\n"
    name = "<ipython-input-7>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    module = types.ModuleType("notebook_like")
    module.__dict__.update(Base=Base, Model=Model, patch=patch)
    exec(compile(source, name, "exec"), module.__dict__)
    assert explain(module.Cell(), "seq_len")[0].where == f"{name}:2"
    assert explain(module.Cell(), "model.dim")[0].where == f"{name}:3"

    exec(compile(source, "<string>", "exec"), module.__dict__)
    assert explain(module.Cell(), "seq_len")[0] == Said("5", "Cell", "<string>:1")


def test_diff_lists_paths_in_order_with_both_values():
    assert diff(Wide(), Heads()) == [
        Difference("seq_len", "128", "64"),
        Difference("model.max_seq_len", "128", "64"),
        Difference("model.attention.heads", "3", "9"),
        Difference("model.attention.width", "6", "18"),
    ]
    assert Difference("optimizer.momentum", None, "0.5") in diff(Heads(), Fast())
    assert Difference("optimizer.beta", "0.9", None) in diff(Heads(), Fast())
    assert diff(Heads(), Heads()) == []


def test_a_snapshot_is_flat_text_in_the_order_of_first_declaration():
    """Edge 28: what a digest only detects, the snapshot next to a checkpoint can show."""
    assert snapshot(Wide()).splitlines()[:5] == [
        "seq_len = 128",
        "optimizer = AdamW",
        "optimizer.lr = 0.0003",
        "optimizer.beta = 0.9",
        "layers[0] = Attention",
    ]
    assert "twin = the same as model.attention.norm" in snapshot(Wide())

    class NewField(Wide):
        added: int = 0

    assert digest(NewField()) != digest(Wide())
    assert diff(Wide(), NewField()) == [Difference("added", None, "0")]


def test_the_digest_is_of_what_will_run_not_of_what_it_is_called():
    class Renamed(Wide):
        pass

    assert digest(Renamed()) == digest(Wide()) == digest(attrs.evolve(Wide()))
    assert digest(replace(Wide(), seq_len=1)) != digest(Wide())


def test_the_digest_does_not_depend_on_where_a_file_lies(tmp_path):
    """Edge 27: module names made from paths leaked into the hash."""
    text = (
        "from forgather_dsl.dsl import Lazy\n"
        "def fn(): ...\n"
        "class Kind: ...\n"
        "class Mine(Lazy):\n"
        "    f: object = fn\n"
        "    k: type = Kind\n"
        "    n: int = 1\n"
    )
    digests = set()
    for folder in ("one", "two/deep"):
        (tmp_path / folder).mkdir(parents=True)
        file = tmp_path / folder / "my-mine.py"
        file.write_text(text)
        mine = load(f"{file}:Mine")()
        digests.add(digest(mine))
        assert str(tmp_path) not in snapshot(mine)
        assert "f = my-mine:fn" in snapshot(mine)
    assert len(digests) == 1


def test_the_digest_is_the_same_in_another_process(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from forgather_dsl.dsl import Lazy\n"
        "class Thing: ...\n"
        "class Mine(Lazy):\n"
        "    names: frozenset = frozenset('abcdef')\n"
        "    thing: object = Thing()\n"
    )
    code = f"from forgather_dsl.dsl import *; print(digest(load('{file}:Mine')()))"
    root = Path(__file__).parents[2]
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert found[0] == found[1]
    assert len(found[0].strip()) == 64


def test_the_graph_knows_nodes_edges_and_what_is_shared():
    found = graph(Wide())
    assert set(found.nodes) == {
        "", "optimizer", "layers[0]", "layers[0].norm", "layers[1]", "layers[1].norm", "thing", "model",
        "model.attention", "model.attention.norm",
    }  # fmt: skip
    assert ("", "layers[0]", "layers[0]") in found.edges
    assert ("", "twin", "model.attention.norm") in found.edges
    assert ("model", "attention", "model.attention") in found.edges
    assert len(found.edges) == len(found.nodes)  # a tree has one fewer


def test_drawings_hold_every_node_and_edge():
    found = graph(Wide())
    for text in (mermaid(found), dot(found)):
        assert text.count("->" if text.startswith("digraph") else "-->") == len(found.edges)
        assert "Attention" in text
        assert "layers[1]" in text
