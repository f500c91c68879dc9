"""The names of the file: every definition keeps its own where it can; functions and constants give way before classes."""

from __future__ import annotations

import ast
import builtins
import keyword
import re
import sys
from collections.abc import Iterable, Mapping

from .effects import is_effect
from .keys import Import, Key, Unit
from .resolve import Modules
from .units import Written

_RESERVED = {"build_model", "load_model", "annotations"}


def named(
    units: Mapping[Unit, Written], order: list[Unit], imports: Iterable[Import], modules: Modules
) -> dict[Key, str]:
    """A name for every unit and import; no name hides another where it is used."""
    forbidden: dict[Key, set[str]] = {}
    for written in units.values():
        for key, names in written.forbidden.items():
            forbidden.setdefault(key, set()).update(names)
    taken: set[str] = {*dir(builtins), *_RESERVED}
    given: dict[Key, str] = {}

    def give(key: Key, wanted: str, *others: str) -> None:
        numbered = [f"{wanted}_{i}" for i in range(2, 1000)]
        for name in (wanted, *others, *numbered):
            if name not in taken and name not in forbidden.get(key, ()) and not keyword.iskeyword(name):
                given[key] = name
                taken.add(name)
                return

    classes = [u for u in order if isinstance(units[u].node, ast.ClassDef) and not is_effect(u)]
    rest = [u for u in order if u not in set(classes) and not is_effect(u)]
    firm = [u for u in classes if mangled(u, units[u].text)]  # these cannot give way
    for unit in dict.fromkeys([*firm, *classes]):
        give(unit, unit.name, _with_module(unit, classes=True))
    for key in sorted(imports):
        wanted = modules.statement(key)[1]
        if "." in wanted:
            given[key] = wanted
        else:
            give(key, wanted)
    for unit in rest:
        give(unit, unit.name, _with_module(unit, classes=False))
    return given


def mangled(unit: Unit, text: str) -> bool:
    """Whether a text spells out a private name of a class, as in `_Class__name`."""
    return re.search(rf"\b_{re.escape(unit.name.lstrip('_'))}__\w", text) is not None


def _with_module(unit: Unit, classes: bool) -> str:
    """The name with that of its module, in the way of names of its kind."""
    tail = unit.module.rpartition(".")[2].strip("_")
    private = "_" if unit.name.startswith("_") else ""
    bare = unit.name.lstrip("_")
    if classes:
        return private + "".join(p.title() for p in tail.split("_")) + bare
    return f"{private}{tail.upper() if bare.isupper() else tail}_{bare}"


def import_lines(imports: Iterable[Import], names: Mapping[Key, str], modules: Modules) -> list[str]:
    """Import statements, sorted and grouped as isort does it."""
    plain: set[tuple[bool, str]] = set()
    froms: dict[str, set[str]] = {}
    for key in imports:
        spelling, name = modules.statement(key)[0], names[key]
        if spelling.startswith("import "):
            module = key.module
            plain.add((_stdlib(module), f"import {module}" if name == module else f"import {module} as {name}"))
        else:
            origin = spelling.split(" ")[1]
            item = spelling.split(" import ")[1].split(" as ")[0]
            froms.setdefault(origin, set()).add(item if item == name else f"{item} as {name}")
    groups: list[str] = []
    for standard in (True, False):
        lines = sorted(
            (line for s, line in plain if s is standard), key=lambda line: line.removeprefix("import ").lower()
        )
        for module in sorted((m for m in froms if _stdlib(m) is standard), key=str.lower):
            lines.append(_from_line(module, froms[module]))
        if lines:
            groups.append("\n".join(lines))
    return groups


def _from_line(module: str, items: set[str]) -> str:
    ordered = sorted(items, key=_item_order)
    line = f"from {module} import {', '.join(ordered)}"
    if len(line) <= 120:
        return line
    inner = "".join(f"    {item},\n" for item in ordered)
    return f"from {module} import (\n{inner})"


def _item_order(item: str) -> tuple[int, str]:
    name = item.split(" ")[0]
    constant, cls = name.isupper() and len(name) > 1, name[:1].isupper()
    return (0 if constant else 1 if cls else 2), name


def _stdlib(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names
