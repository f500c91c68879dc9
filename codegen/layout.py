"""The file from its units: order, names, imports, header, footer."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping

from .closure import Closure
from .effects import is_effect
from .errors import CodegenError, Problem
from .facts import World
from .footer import build_text, load_text
from .header import header_text
from .keys import Import, Key, Unit
from .modules import STRING_BREAK, notice
from .naming import import_lines, mangled, named
from .reflow import reflowed
from .units import Written


def ordered(world: World, units: Mapping[Unit, Written], roots: list[Unit], first: list[Unit]) -> list[Unit]:
    """Parts before wholes, in the order of their first use. Raises `CodegenError` where definitions need each other."""
    hard = {
        u: [k for k in world.marks.keys(w.text, hard_only=True) if isinstance(k, Unit) and k != u]
        for u, w in units.items()
    }
    every = {u: [k for k in world.marks.ordered(w.text) if isinstance(k, Unit) and k != u] for u, w in units.items()}
    done: list[Unit] = []
    stack: list[Unit] = []

    def reach(unit: Unit) -> set[Unit]:
        seen: set[Unit] = set()
        todo = [unit]
        while todo:
            one = todo.pop()
            if one not in seen:
                seen.add(one)
                todo += hard[one]
        return seen

    def put(unit: Unit) -> None:
        if unit in done:
            return
        if unit in stack:
            circle = [f"{u.module}.{u.name}" for u in [*stack[stack.index(unit) :], unit]]
            raise CodegenError(
                [Problem(f"these definitions need each other when they run: {' -> '.join(circle)}", "break the circle")]
            )
        stack.append(unit)
        for needed in hard[unit]:
            put(needed)
        for needed in every[unit]:
            if needed not in stack and needed not in done and not reach(needed) & set(stack):
                put(needed)
        stack.pop()
        done.append(unit)

    for unit in [*first, *roots, *(u for u in units if not is_effect(u))]:
        put(unit)
    for unit in [u for u in units if is_effect(u)]:  # as soon as all is there that it needs
        for needed in every[unit]:
            put(needed)
        at = max((done.index(k) for k in every[unit]), default=-1)
        while at + 1 < len(done) and is_effect(done[at + 1]):
            at += 1
        done.insert(at + 1, unit)
    return done


def written_out(
    closure: Closure, header: str | None, tied: Mapping[str, str], title: str | None
) -> tuple[str, dict[Key, str]]:
    """(text of the file, names of its units). `header` is that of an emitted file that was traced again."""
    world = closure.world
    units = closure.units
    top = [k for t in (closure.build, closure.root, *closure.also_texts) for k in world.marks.keys(t)]
    roots = [k for k in dict.fromkeys(top) if isinstance(k, Unit)]
    configs = [u for u in roots if closure.is_config(u)]
    order = ordered(world, units, [*world.marks.keys(closure.root), *roots], configs)  # type: ignore[list-item]
    order = _constants_first(world, units, order)
    json, os, torch = (world.modules.outside(name) for name in ("json", "os", "torch"))
    imports = {k for w in units.values() for k in world.marks.keys(w.text) if isinstance(k, Import)}
    imports |= {k for k in top if isinstance(k, Import)} | {json, os, torch}
    names = named(units, order, imports, world.modules)
    _unmangled(closure, names)
    body = _body(world, units, order, names)
    root, call = world.marks.fill(closure.root, names), world.marks.fill(closure.build, names)
    footer = [build_text(root, call), load_text(root, tied, names[torch], names[json], names[os])]
    parts = [
        "\n\n".join(import_lines(imports, names, world.modules)),
        *body,
        *(f"\n\n{text.rstrip(chr(10))}" for text in footer),
    ]
    code = "from __future__ import annotations\n\n" + "\n".join(parts) + "\n"
    known = {line.strip() for module in world.modules.texts() for line in module.text.split("\n")}
    code = reflowed(code, known) if _parses(code) else code
    if header is None:
        header = header_text(closure, names, title)
    notices = dict.fromkeys(
        n for n in (notice(world.modules.read(m).text) for m in sorted({u.module for u in units})) if n
    )
    comments = "".join(f"{n}\n\n" for n in notices)
    return f'"""{header}"""\n\n{comments}{code}'.replace(STRING_BREAK, "\n"), names


def _parses(code: str) -> bool:
    try:
        ast.parse(code.replace(STRING_BREAK, "\n"))
    except SyntaxError:
        return False
    return True


def _unmangled(closure: Closure, names: Mapping[Key, str]) -> None:
    """A class whose private names are read from outside keeps its own name. Raises `CodegenError` where it cannot."""
    units = closure.units
    renamed = [u for u, w in units.items() if isinstance(w.node, ast.ClassDef) and names.get(u, u.name) != u.name]
    for unit in renamed:
        readers = [u for u, written in units.items() if mangled(unit, written.text)]
        if any(u.name != unit.name or u == unit for u in readers):
            reason = (
                f"two classes are called {unit.name}, and a private name such as _{unit.name}__x is read from outside"
            )
            raise CodegenError(
                [Problem(reason, "rename one of the classes", closure.world.modules.read(unit.module).file)]
            )


def _constants_first(world: World, units: Mapping[Unit, Written], order: list[Unit]) -> list[Unit]:
    """Constants that need no other definition stand at the top."""
    free = [
        u
        for u in order
        if units[u].constant
        and not [k for k in world.marks.keys(units[u].text, True) if isinstance(k, Unit) and k != u]
    ]
    return [*free, *(u for u in order if u not in set(free))]


def _body(world: World, units: Mapping[Unit, Written], order: list[Unit], names: Mapping[Key, str]) -> list[str]:
    parts: list[str] = []
    seen: set[int] = set()
    before = False
    for unit in order:
        written = units[unit]
        if id(written.node) in seen or not written.text:
            continue
        seen.add(id(written.node))
        text = tidy(world.marks.fill(written.text, names))
        commented = text.startswith("#")
        if written.constant and before:
            parts.append(f"\n{text}" if commented else text)
        else:
            parts.append(f"\n{text}" if written.constant and not parts else f"\n\n{text}")
        before = written.constant
    return parts


def tidy(text: str) -> str:
    """Blank lines as they are where nothing was taken out."""
    text = re.sub(r"[ \t]+\n", "\n", text.strip("\n"))
    text = re.sub(r"\n{3,}", "\n\n", text)
    lines = text.split("\n")
    out: list[str] = []
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if (
            not line
            and out
            and re.match(r"\s*(class|def|async def|if|elif|else|for|while|with|try|except|finally)\b.*:$", out[-1])
        ):
            continue
        if not line and re.match(r"\s*(elif|else|except|finally)\b", following):
            continue
        out.append(line)
    return "\n".join(out)
