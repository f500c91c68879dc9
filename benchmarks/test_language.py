"""What the language costs beside plain attrs, OmegaConf (hydra) and fiddle, on one tree of 100 nodes.

The tree is 1/3/9/27/60 nodes, four scalars each; three levels of inheritance override five deep values each.
`pytest benchmarks/test_language.py` for one look; `python benchmarks/test_language.py` runs all systems in turns, many
rounds, and prints medians and ratios, which go into LOG.md. All systems must arrive at the same values.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import attrs
import pytest

from forgather_dsl.dsl import Lazy, build, from_dict, override, patch, snapshot, to_dict, walk

CHILDREN = "xyz"
LEVELS = tuple(
    {f"{path}.{'abc'[level]}": 10 * level + i for i, path in enumerate(("x", "x.y", "y.z.x", "z.x.y", "x.x.x.x"))}
    for level in range(3)
)


def tree(make: Callable[..., Any]) -> Any:
    """The tree, made by `make(**fields)`, leaves first."""
    with_children = [1, 3, 9, 20]  # at each depth: 1 + 3 + 9 + 27 + 60 nodes

    def grow(depth: int, counter: list[int]) -> Any:
        fields: dict[str, Any] = {"a": depth, "b": 0.5, "c": depth, "d": "text"}
        if depth < 4:
            counter[depth] += 1
            if counter[depth] <= with_children[depth]:
                fields |= {name: grow(depth + 1, counter) for name in CHILDREN}
        return make(**fields)

    return grow(0, [0, 0, 0, 0])


def nested(level: dict[str, Any], leaf: Callable[..., Any]) -> Any:
    """The overrides of one level as nested keywords of `leaf(**fields)`."""
    grouped: dict[str, Any] = {}
    for path, value in level.items():
        head, _, rest = path.partition(".")
        if rest:
            grouped.setdefault(head, {})[rest] = value
        else:
            grouped[head] = value
    return leaf(**{k: nested(v, leaf) if isinstance(v, dict) else v for k, v in grouped.items()})


class Plain:
    """What is built."""

    def __init__(self, a: int, b: float, c: int, d: str, x: Any, y: Any, z: Any) -> None:
        self.a, self.b, self.c, self.d, self.x, self.y, self.z = a, b, c, d, x, y, z


class Node(Lazy["Plain"]):
    a: int = 0
    b: float = 0.5
    c: int = 0
    d: str = "text"
    x: Node | None = None
    y: Node | None = None
    z: Node | None = None


class System(NamedTuple):
    """One way to do it: the same four tasks, as functions without arguments; None where it has no such task."""

    name: str
    resolve: Callable[[], Any]  # declare nothing, apply three levels, read every leaf; returns the sum of the numbers
    build: Callable[[], Any]
    round_trip: Callable[[], Any] | None
    make_class: Callable[[], Any] | None
    digest: Callable[[], Any] | None = None


def ours() -> System:
    class Base(Lazy[Any]):
        tree: Node = tree(Node)

    def below(cls: Any, level: dict[str, Any]) -> Any:
        return type(
            "Level", (cls,), {"tree": nested(level, lambda **fields: patch(Node, **fields)), "__module__": __name__}
        )

    cls: Any = Base
    for level in LEVELS:
        cls = below(cls, level)

    def resolve() -> float:
        return sum(e.value for e in walk(cls()) if isinstance(e.value, (int, float)))

    done = cls()
    return System(
        "forgather_dsl",
        resolve,
        lambda: build(done.tree),
        lambda: from_dict(json.loads(json.dumps(to_dict(done))), trust=True),
        lambda: below(Base, LEVELS[0]),
        lambda: snapshot(cls()),
    )


def attrs_only() -> System:
    @attrs.frozen
    class Part:
        a: int = 0
        b: float = 0.5
        c: int = 0
        d: str = "text"
        x: Any = None
        y: Any = None
        z: Any = None

    def evolved(node: Any, level: Any) -> Any:
        return attrs.evolve(
            node, **{k: evolved(getattr(node, k), v) if isinstance(v, dict) else v for k, v in level.items()}
        )

    levels = [nested(level, dict) for level in LEVELS]

    def resolved() -> Any:
        node = tree(Part)
        for level in levels:
            node = evolved(node, level)
        return node

    def leaves(node: Any) -> Iterator[float]:
        yield from (node.a, node.b, node.c)
        for child in (node.x, node.y, node.z):
            if child is not None:
                yield from leaves(child)

    def built(node: Any) -> Any:
        return (
            None if node is None else Plain(node.a, node.b, node.c, node.d, built(node.x), built(node.y), built(node.z))
        )

    def read(data: Any) -> Any:
        return None if data is None else Part(**{k: read(v) if k in CHILDREN else v for k, v in data.items()})

    def make_class() -> Any:
        return attrs.make_class("Made", {name: attrs.field(default=0) for name in "abcd"}, frozen=True)

    done = resolved()
    return System(
        "attrs",
        lambda: sum(leaves(resolved())),
        lambda: built(done),
        lambda: read(json.loads(json.dumps(attrs.asdict(done)))),
        make_class,
    )


def hydra() -> System:
    from omegaconf import OmegaConf

    base = {"tree": tree(lambda **fields: {**dict.fromkeys(CHILDREN), **fields})}
    levels = [{"tree": nested(level, dict)} for level in LEVELS]

    def resolved() -> Any:
        return OmegaConf.merge(OmegaConf.create(base), *levels)

    def leaves(node: Any) -> Iterator[float]:
        for value in node.values():
            if isinstance(value, dict):
                yield from leaves(value)
            elif isinstance(value, (int, float)):
                yield value

    def built(node: Any) -> Any:
        return None if node is None else Plain(**{k: built(node[k]) if k in CHILDREN else node[k] for k in node})

    done = resolved()
    return System(
        "hydra (OmegaConf)",
        lambda: sum(leaves(OmegaConf.to_container(resolved())["tree"])),  # type: ignore[index, call-overload]
        lambda: built(done.tree),
        lambda: OmegaConf.create(json.loads(json.dumps(OmegaConf.to_container(done)))),
        None,
    )


def fiddle() -> System:
    import copy

    import fiddle as fdl
    from fiddle.experimental import serialization

    base = tree(lambda **fields: fdl.Config(Plain, **{**dict.fromkeys(CHILDREN), **fields}))

    def resolved() -> Any:
        root = copy.deepcopy(base)
        for level in LEVELS:
            for path, value in level.items():
                node, *names = root, *path.split(".")
                for name in names[:-1]:
                    node = getattr(node, name)
                setattr(node, names[-1], value)
        return root

    def leaves(node: Any) -> Iterator[float]:
        yield from (node.a, node.b, node.c)
        for child in (node.x, node.y, node.z):
            if child is not None:
                yield from leaves(child)

    done = resolved()
    return System(
        "fiddle",
        lambda: sum(leaves(resolved())),
        lambda: fdl.build(done),
        lambda: serialization.load_json(serialization.dump_json(done)),
        None,
    )


MAKERS: dict[str, tuple[Callable[[], System], str | None]] = {
    "forgather_dsl": (ours, None),
    "attrs": (attrs_only, None),
    "hydra": (hydra, "omegaconf"),
    "fiddle": (fiddle, "fiddle"),
}
TASKS = ("resolve", "build", "round_trip", "make_class", "digest")


@pytest.fixture(scope="module", params=MAKERS)
def system(request: pytest.FixtureRequest) -> System:
    make, needs = MAKERS[request.param]
    if needs is not None and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{needs} is not installed: pip install hydra-core fiddle")
    return make()


@pytest.mark.parametrize("task", TASKS)
def test_language(benchmark: Any, system: System, task: str) -> None:
    function = getattr(system, task)
    if function is None:
        pytest.skip(f"{system.name} has no such task")
    benchmark.group = task
    benchmark(function)


def test_all_systems_arrive_at_the_same_values(system: System) -> None:
    assert system.resolve() == pytest.approx(attrs_only().resolve())
    assert count(system.build()) == 100


def test_an_overlay_of_one_leaf(benchmark: Any) -> None:
    node = tree(Node)
    benchmark(lambda: override(node, {"x.x.x.x.a": "3"}).x.x.x.x.a)


def count(node: Any) -> int:
    """Nodes of a built tree."""
    return 0 if node is None else 1 + count(node.x) + count(node.y) + count(node.z)


def main(rounds: int = 30) -> None:
    """Every system and task in turns, so that what else the machine does falls on all; medians in ms and ratios to ours."""
    systems = [make() for make, needs in MAKERS.values() if needs is None or importlib.util.find_spec(needs)]
    times: dict[tuple[str, str], list[float]] = {}
    gc.disable()
    for _ in range(rounds):
        for system in systems:
            for task in TASKS:
                function = getattr(system, task)
                if function is None:
                    continue
                begin = time.perf_counter()
                function()
                times.setdefault((system.name, task), []).append(1e3 * (time.perf_counter() - begin))
        gc.collect()
    print(f"{'':<20}" + "".join(f"{task:>22}" for task in TASKS))
    for system in systems:
        cells = []
        for task in TASKS:
            found = times.get((system.name, task))
            own = statistics.median(times[systems[0].name, task])
            cells.append(
                "-" if found is None else f"{statistics.median(found):.2f} ({statistics.median(found) / own:.2f}x)"
            )
        print(f"{system.name:<20}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"median of {rounds} rounds in turns, ms (ratio to the first row); Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
