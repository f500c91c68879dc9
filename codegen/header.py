"""The docstring of the file."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping

from .closure import Closure
from .keys import Key, Unit

MARKER = "Standalone PyTorch source: needs torch alone."


def header_text(closure: Closure, names: Mapping[Key, str], title: str | None) -> str:
    """What the file says of itself: where it comes from, what it needs, what was decided."""
    world, log = closure.world, closure.world.log
    cls = type(closure.model)
    digest = hashlib.sha256("".join(m.text for m in world.modules.texts()).encode()).hexdigest()[:12]
    root = names.get(Unit(cls.__module__, cls.__qualname__), cls.__qualname__)
    named = f"{title}: {root}" if title else root
    lines = [f"{named}, from {cls.__module__} (sources {digest}).", ""]
    required = sorted(world.modules.required)
    lines.append(f"{MARKER.removesuffix(' alone.')} and {', '.join(required)}." if required else MARKER)
    decisions = sorted((d.file, d.line, d.expression, d.value) for d in log.decisions)
    if decisions:
        lines += ["Written for one configuration, in which", ""]
        lines += [f"    {f}:{n}  {e}  ->  {v}" for f, n, e, v in decisions]
    if log.checks:
        count = len(log.checks)
        text = "One check" if count == 1 else f"{count} checks"
        lines += ["", f"{text} of arguments, passed by this configuration, {'is' if count == 1 else 'are'} left out."]
    renamed = [(u, n) for u, n in names.items() if isinstance(u, Unit) and u.name != n]
    if renamed:
        told = ", ".join(f"{u.module}.{u.name} is {n}" for u, n in sorted(renamed))
        lines += ["", f"Renamed, as two had one name: {told}."]
    text = "\n".join(lines)
    text = text.replace("\\", "\\\\").replace('"""', "'''")
    return text + ("\n" if "\n" in text else "")


def emitted_header(text: str) -> str | None:
    """The header of a file that codegen wrote, to be kept when it is traced again."""
    tree = ast.parse(text)
    found = ast.get_docstring(tree, clean=False)
    if found and MARKER.removesuffix(" alone.") in found and isinstance(tree.body[0], ast.Expr):
        raw = text[text.index('"""') + 3 :]
        return raw[: raw.index('"""')]
    return None
