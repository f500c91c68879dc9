"""A process that can import torch, what torch itself needs, the standard library and named packages, and nothing else.

Everything else is as if it were not installed: imports raise ModuleNotFoundError, `find_spec` gives None.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterable
from typing import Any

OF_TORCH = frozenset({"torch", "torchgen", "functorch"})
_NEEDED = frozenset({  # by torch, for installations without metadata; else importlib.metadata knows
    *("typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock", "setuptools"),
    *("_distutils_hack", "pkg_resources", "triton", "nvidia", "cuda", "cuda_bindings"),
})  # fmt: skip


class Guarded:
    """A finder of modules that finds only what is allowed."""

    def __init__(self, finder: Any, allowed: set[str]) -> None:
        self._finder, self._allowed = finder, allowed

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """The spec of a module that may be imported, else None."""
        if name.partition(".")[0] not in self._allowed and not name.startswith("_sysconfigdata_"):
            return None
        find = getattr(self._finder, "find_spec", None)
        return find(name, path, target) if find else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


def guard(allowed: set[str]) -> None:
    """From here on this process imports only what `allowed` holds at that time, by top-level name."""
    sys.meta_path[:] = [Guarded(finder, allowed) for finder in sys.meta_path]


def torch_alone() -> set[str]:
    """The top-level names of the standard library, of torch and of what torch needs."""
    return {*sys.stdlib_module_names, *sys.builtin_module_names, *OF_TORCH, *_NEEDED, *with_needs(["torch"])}


def with_needs(packages: Iterable[str]) -> set[str]:
    """The top-level names of packages and of all that their distributions require without extras."""
    found: set[str] = set(packages)
    waiting, seen = [re.split(r"[.]", package)[0] for package in found], set()
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found |= _top_levels(distribution)
        requirements = [line for line in distribution.requires or [] if "extra ==" not in line]
        waiting += [match[0] for line in requirements if (match := re.match(r"[\w.-]+", line))]
    return found


def _top_levels(distribution: importlib.metadata.Distribution) -> set[str]:
    told = (distribution.read_text("top_level.txt") or "").split()
    files = {
        file.parts[0].partition(".")[0] for file in distribution.files or () if file.suffix in (".py", ".so", ".pyd")
    }
    return {*told, *files, distribution.metadata["Name"].replace("-", "_").lower()}


def foreign_imports(text: str, allowed: Iterable[str]) -> list[tuple[int, str]]:
    """(line, package) of each import in a file that is of neither torch, the standard library nor an allowed package."""
    known = {*sys.stdlib_module_names, "torch", *(name.partition(".")[0] for name in allowed)}
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.partition(".")[0] not in known]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] not in known):
            found.append((node.lineno, "." * node.level + (node.module or "")))
    return sorted(found)
