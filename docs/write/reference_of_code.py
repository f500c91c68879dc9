"""Functions, classes and constants as sections, read off the source: nothing that needs torch is imported."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Found:
    """A public definition: how it is called, what it says of itself, its public methods."""

    name: str
    call: str
    doc: str
    members: tuple[Found, ...]
    file: str
    line: int


@cache
def look_up(name: str, places: tuple[str, ...]) -> Found | None:
    """The definition of a name in files or packages. None when there is none."""
    for place in places:
        path = ROOT / place
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            for after, node in _definitions(file):
                found = _read(node, after, file.relative_to(ROOT).as_posix(), name)
                if found is not None:
                    return found
    return None


@cache
def _definitions(file: Path) -> tuple[tuple[ast.stmt, ast.stmt], ...]:
    """Statements at module level, those below an `if` too, each after the one that follows it."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    bodies = [tree.body] + [node.body for node in tree.body if isinstance(node, ast.If)]
    return tuple((after, node) for body in bodies for node, after in zip(body, [*body[1:], body[-1]]))


def _read(node: ast.stmt, after: ast.stmt, file: str, name: str) -> Found | None:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
        members: list[Found] = []
        call = _signature(node, name)
        if isinstance(node, ast.ClassDef):
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                    inner = _read(method, method, file, method.name)
                    if inner is not None:
                        members.append(inner)
        return Found(name, call, ast.get_docstring(node) or "", tuple(members), file, node.lineno)
    targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
    if any(isinstance(target, ast.Name) and target.id == name for target in targets):
        said = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else ""
        return Found(name, name, str(said), (), file, node.lineno)
    return None


def _signature(node: ast.FunctionDef | ast.ClassDef, name: str) -> str:
    if isinstance(node, ast.FunctionDef):
        if any(
            (isinstance(d, ast.Name) and d.id == "property") or "cached_property" in ast.unparse(d)
            for d in node.decorator_list
        ):
            return name + (f": {ast.unparse(node.returns)}" if node.returns else "")
        returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
        arguments = re.sub(r"^(self|cls)(, )?", "", ast.unparse(node.args))
        return f"{name}({arguments}){returns}"
    made = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
    if made is not None:
        return f"{name}({re.sub(r'^self(, )?', '', ast.unparse(made.args))})"
    fields = [ast.unparse(n).split("=")[0].strip() for n in node.body if isinstance(n, ast.AnnAssign)]
    data = any("dataclass" in ast.unparse(d) for d in node.decorator_list) or any(
        "NamedTuple" in ast.unparse(b) for b in node.bases
    )
    bases = ", ".join(ast.unparse(base) for base in node.bases)
    return f"{name}({', '.join(fields)})" if data and fields else f"class {name}({bases})" if bases else f"class {name}"


def written(found: Found, level: int = 2) -> str:
    """Markdown of one definition; `Args:` and `Raises:` become lists."""
    source = f" ([source](../../{found.file}))" if level == 2 else ""
    parts = [f"{'#' * level} {found.name}\n\n`{found.call}`{source}\n\n"]
    if found.doc:
        parts.append(_prose(found.doc) + "\n\n")
    parts += [written(member, level + 1) + "\n" for member in found.members]
    return "".join(parts).rstrip() + "\n"


def _prose(doc: str) -> str:
    out: list[str] = []
    for line in inspect.cleandoc(doc).splitlines():
        heading = re.match(r"(Args|Raises|Returns|Yields):$", line)
        item = re.match(r"    ([*\w, ]+): (.*)$", line)
        if heading:
            out += [heading[1] + ":", ""]
        elif item:
            out.append(f"- `{item[1]}`: {item[2]}")
        else:
            out.append(line.replace("        ", "  ", 1) if line.startswith("        ") else line)
    return "\n".join(out)


def first_sentence(doc: str | None) -> str:
    """For a table: up to the first full stop that ends a sentence, on one line."""
    text = " ".join(inspect.cleandoc(doc or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s+(?=[A-Z`])", text)[0].rstrip(":")
