"""The object graph of an experiment, down to the stages that each rank builds and its actions: tree, mermaid, dot, JSON."""

from __future__ import annotations

from typing import Any

from ..dsl import Lazy, graph
from ..dsl.graph import Graph, dot, mermaid
from ..dsl.load import is_root
from ..plan.choosing import chosen
from ..plan.layout import lay_out
from ..specs.experiment import num_replicas
from .output import Branch, tree_lines

FIRST_ACTIONS = 12  # of each rank, in drawings; JSON has all


def draw(found: Lazy[Any], form: str) -> str:
    """The graph as text in one of the forms `tree`, `mermaid`, `dot`."""
    objects = graph(found)
    ranks = ranks_of(found)
    if form == "tree":
        root = _branch(objects, "", type(found).__name__)
        return "\n".join(tree_lines(Branch(root.label, (*root.below, *map(_rank_branch, ranks))))) + "\n"
    edges = _stage_edges(ranks)
    if form == "mermaid":
        lines = [f'  {name}["{label}"]' for name, label, _ in edges]
        lines += [f"  {above} --> {name}" for name, _, above in edges]
        return mermaid(objects) + "".join(f"{line}\n" for line in lines)
    lines = [f'  {name} [label="{label}"];' for name, label, _ in edges]
    lines += [f"  {above} -> {name};" for name, _, above in edges]
    return dot(objects).removesuffix("}\n") + "".join(f"{line}\n" for line in [*lines, "}"])


def as_data(found: Lazy[Any]) -> dict[str, Any]:
    """The graph as JSON: `nodes` by path, `edges`, and `ranks` with their stages and all their actions."""
    objects = graph(found)
    return {
        "nodes": [
            {"path": path, "type": type(node).__name__, "target": _target(node)} for path, node in objects.nodes.items()
        ],
        "edges": [{"from": a, "field": field, "to": b} for a, field, b in objects.edges],
        "ranks": ranks_of(found),
    }


def ranks_of(found: Any) -> list[dict[str, Any]]:
    """Per rank: its stages (layers, and whether embedding and head are there) and its actions. Empty for a component."""
    if not is_root(type(found)):
        return []
    found = chosen(found)
    layout = lay_out(found)
    schedule, layers = layout.schedule, layout.layers
    ranks = []
    for rank, place in enumerate(list(range(schedule.num_ranks)) * num_replicas(found)):
        stages = [
            {
                "stage": stage,
                "layers": list(layers[stage]),
                "embedding": stage == 0,
                "head": stage == schedule.num_stages - 1 and not schedule.num_shards,
            }
            for stage in schedule.stages_of(place)
        ]
        actions = [str(action) for action in schedule.actions[place]]
        where = {"rank": rank, "replica": rank // schedule.num_ranks}
        ranks.append({**where, "stages": stages, "schedule": schedule.name, "actions": actions})
    return ranks


def _target(node: Lazy[Any]) -> str | None:
    target = type(node).__target__
    return target if target is None or isinstance(target, str) else f"{target.__module__}.{target.__qualname__}"


def _branch(objects: Graph, path: str, label: str) -> Branch:
    below = []
    for owner, field, to in objects.edges:
        if owner != path:
            continue
        node = objects.nodes[to]
        here = f"{owner}.{field}".lstrip(".") if not field.startswith("[") else owner + field
        if here != to:
            below.append(Branch(f"{field}: the same as {to}"))
        else:
            target = _target(node)
            below.append(_branch(objects, to, f"{field}: {type(node).__name__}" + (f" -> {target}" if target else "")))
    return Branch(label, below)


def _rank_branch(rank: dict[str, Any]) -> Branch:
    stages = [Branch(_stage_text(stage)) for stage in rank["stages"]]
    replica = f", replica {rank['replica']}" if rank["replica"] else ""
    return Branch(f"rank {rank['rank']}{replica}", (*stages, Branch(f"{rank['schedule']}: {_head(rank)}")))


def _stage_text(stage: dict[str, Any]) -> str:
    layers = stage["layers"]
    text = f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]} to {layers[-1]}"
    parts = ["embedding"] * stage["embedding"] + [text] + ["norm and head"] * stage["head"]
    return f"stage {stage['stage']}: {', '.join(parts)}"


def _head(rank: dict[str, Any]) -> str:
    actions = rank["actions"]
    more = f" ... ({len(actions)} actions)" if len(actions) > FIRST_ACTIONS else ""
    return " ".join(actions[:FIRST_ACTIONS]) + more


def _stage_edges(ranks: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(name, label, name of the node above) of ranks and their stages; the root of the object graph is n0."""
    edges = []
    for rank in ranks:
        name = f"rank{rank['rank']}"
        edges.append((name, f"rank {rank['rank']}: {_head(rank)}", "n0"))
        edges += [(f"stage{stage['stage']}", _stage_text(stage), name) for stage in rank["stages"]]
    return edges
