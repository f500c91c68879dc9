"""Which experiments there are: in a folder, by importing what looks like experiments; for shell completion, by reading alone."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from ..dsl import ConfigError, LoadError, is_mixin, missing
from ..dsl.load import experiments_in, load_file, project_root
from ..errors import UserError
from ..runs.members import is_sweep_source
from ..runs.run import Run, is_run
from ..runs.sweep_index import is_sweep
from . import gallery, sweeping
from .targets import printing_to_stderr

SKIPPED = {"__pycache__", "node_modules", "site-packages", "build", "dist", "runs"}
RUN_MARKS = ("config.json", "snapshot.txt", "environment.json", "plan.json", "metrics.jsonl")
MOST_FILES = 2000  # looked at below a folder
Row = dict[str, Any]
_EMPTY: Row = {"target": "", "doc": "", "bases": [], "abstract": False, "missing": [], "error": None, "kind": ""}


def default_place() -> str:
    """`experiments` below the working directory, else the directory itself when it has any, else the gallery."""
    if os.path.isdir("experiments"):
        return "experiments"
    if of_a_run("."):
        return "."
    return "." if any(looks_like_experiments(file) for file in python_files(".")) else gallery.gallery()


def rows(place: str) -> list[Row]:
    """One row per experiment class, in the order of files and lines; a file that does not import is a row with `error`.

    A run directory is one row, read and not imported; those below a folder are passed over with all Python in them.

    Raises:
        LoadError: there is no such file or folder.
    """
    if is_sweep(place) and not is_run(place):
        return sweeping.rows(place)
    if of_a_run(place):
        return [_run_row(place)]
    if os.path.isfile(place):
        chosen = [place]
    elif os.path.isdir(place):
        chosen = [file for file in python_files(place) if looks_like_experiments(file)]
    else:
        raise LoadError(f"no file or folder {place}; write a Python file or a folder of them")
    return [row for file in chosen for row in _rows_of(file)]


def of_a_run(folder: str) -> bool:
    """Whether a folder is a run, or calls itself one: its Python is a record, to be read and never imported."""
    return any(os.path.lexists(os.path.join(folder, mark)) for mark in RUN_MARKS)


def _rows_of(file: str) -> Iterator[Row]:
    name = gallery.short(file)
    try:
        with printing_to_stderr():
            module = load_file(file)
    except ConfigError as error:
        yield {**_EMPTY, "target": name, "error": str(error)}
        return
    for cls in experiments_in(module):
        yield _row(f"{name}:{cls.__qualname__}", cls)
    for key, value in vars(module).items():
        if (
            not key.startswith("_")
            and is_sweep_source(value)
            and getattr(value, "__module__", name_of(module)) == name_of(module)
        ):
            yield {**_EMPTY, "target": f"{name}:{key}", "doc": _sweep_doc(value), "kind": "sweep"}


def name_of(module: Any) -> str:
    """A module's own."""
    return module.__name__


def _sweep_doc(value: Any) -> str:
    if callable(value):
        return (value.__doc__ or "").strip().partition("\n")[0] or "a generator of experiments"
    return f"{len(value)} experiments"


def _run_row(place: str) -> Row:
    row: Row = {**_EMPTY, "target": place}
    try:
        kind = type(Run(place).experiment)
        return {**row, "doc": f"a run of {kind.__name__}", "bases": [base.__name__ for base in kind.__bases__]}
    except (ConfigError, UserError) as error:
        return {**row, "error": str(error)}


def _row(target: str, cls: Any) -> Row:
    root, error = cls(), None
    try:
        abstract, lacking = cls.__abstract__ or is_mixin(root), missing(root)
    except Exception as problem:  # a derived field of the user's may raise anything
        abstract, lacking, error = cls.__abstract__, [], f"{type(problem).__name__}: {problem}"
    doc = (cls.__dict__.get("__doc__") or "").strip().partition("\n")[0]
    bases = [base.__name__ for base in cls.__bases__]
    row = {**_EMPTY, "target": target, "doc": doc, "bases": bases, "abstract": abstract}
    return {**row, "missing": lacking, "error": error}


def python_files(place: str) -> Iterator[str]:
    """Python files below a folder, without environments, hidden folders and tests."""
    seen = 0
    for folder, names, files in os.walk(place):
        keep = [n for n in names if not n.startswith(".") and n not in SKIPPED]
        keep = [n for n in keep if not os.path.exists(os.path.join(folder, n, "pyvenv.cfg"))]
        keep = [n for n in keep if not of_a_run(os.path.join(folder, n))]
        names[:] = sorted(n for n in keep if os.path.realpath(os.path.join(folder, n)) != gallery.PACKAGE)
        for name in sorted(files):
            seen += 1
            if seen > MOST_FILES:
                return
            if name.endswith(".py") and not name.startswith(("test_", "conftest")):
                yield os.path.normpath(os.path.join(folder, name))


def looks_like_experiments(file: str) -> bool:
    """Whether importing the file may bring experiments; of a file that is no Python, whether it was meant to."""
    text = _text(file)
    try:
        return bool(_experiment_classes(ast.parse(text), file))
    except SyntaxError:
        return re.search(r"^class \w+\(.*Experiment|^from forgather_dsl|^import forgather_dsl", text, re.M) is not None


def class_names(file: str) -> list[str]:
    """Names of the classes in a file that look like experiments to run, without importing it."""
    try:
        found = _experiment_classes(ast.parse(_text(file)), file)
    except SyntaxError:
        return []
    return [node.name for node in found if not any(keyword.arg == "abstract" for keyword in node.keywords)]


def _text(file: str) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except OSError:
        return ""


def _experiment_classes(tree: ast.Module, file: str) -> list[ast.ClassDef]:
    """Classes whose bases lead to `Experiment`, or to a class of another file of the same project."""
    imported: dict[str, tuple[str, str]] = {}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom):
            imported |= {n.asname or n.name: (statement.module or "", n.name) for n in statement.names}
    found: dict[str, ast.ClassDef] = {}
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and any(_leads(base, found, imported, file) for base in node.bases):
            found[node.name] = node
    return list(found.values())


def _leads(base: ast.expr, found: dict[str, ast.ClassDef], imported: dict[str, tuple[str, str]], file: str) -> bool:
    name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
    if name == "Experiment" or name in found:
        return True
    module, original = imported.get(name, ("", ""))
    package = module.partition(".")[0]
    if package == "forgather_dsl":
        return original == "Experiment"
    if not module or package in sys.stdlib_module_names:
        return False
    below = module.replace(".", os.sep)
    roots = {project_root(os.path.abspath(file)), os.path.dirname(os.path.abspath(file))}
    return any(os.path.exists(os.path.join(root, below + ending)) for root in roots for ending in (".py", os.sep))


def complete(incomplete: str) -> list[str]:
    """Folders, runs and targets that begin with what is typed."""
    file, colon, name = incomplete.partition(":")
    if colon:
        return [f"{file}:{n}" for n in class_names(file) if n.startswith(name)]
    folder, start = os.path.split(incomplete)
    out: list[str] = []
    for entry in sorted(os.listdir(folder or ".") if os.path.isdir(folder or ".") else []):
        path = os.path.join(folder, entry)
        if not entry.startswith(start) or (entry.startswith(".") and not start):
            continue
        if os.path.isdir(path):
            out.append(path if os.path.isfile(os.path.join(path, "config.json")) else path + os.sep)
        elif entry.endswith(".py"):
            out += [f"{path}:{n}" for n in class_names(path)]
    return out
