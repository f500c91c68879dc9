"""The house rules: which way imports point, what imports torch, docstrings, sizes, names; specs and constructors agree.

Every exception stands in a table here, with its reason.
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import codegen
import forgather_dsl
from forgather_dsl.dsl import Lazy
from forgather_dsl.dsl.build import import_target

PACKAGE = Path(forgather_dsl.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
CODEGEN = sorted(f"codegen/{path.name}" for path in Path(codegen.__file__).parent.glob("*.py"))
EVERY = MODULES + CODEGEN

LAYERS = {"errors": 0, "dsl": 0, "specs": 1, "plan": 2, "models": 3, "data": 3, "parallel": 4, "train": 5, "runs": 6}
LAYERS |= {"interop": 6, "cli": 7, "__main__": 8, "__init__": -1}  # the top holds a version and loads the rest by name

LATE_IMPORTS = {  # inside functions, against the arrow: what a spec describes is imported when it is needed, not before
    ("specs", "data"): "the size of a vocabulary is read off its file",
    ("specs", "plan"): "which rank holds which stage is read off a schedule's file",
    ("specs", "train"): "building an Experiment gives a Trainer",
    ("train", "runs"): "Trainer.fit returns a Run",
    ("train", "interop"): "init_from may name a Hugging Face folder",
}
LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
OWN_DEFAULTS: dict[str, set[str]] = {}  # functions that are called by hand too, and what the spec does not know
FORBIDDEN = re.compile(r"(^|_)(utils?|helpers?|managers?|common|misc)(_|$)|(Utils?|Helpers?|Manager|Common|Misc)$")
MOST_LINES, MOST_FUNCTION_LINES, MOST_DOCSTRING_LINES = 300, 50, 8


def text(module: str) -> str:
    return ((PACKAGE.parent if module in CODEGEN else PACKAGE) / module).read_text()


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse(text(module))


def imported(module: str) -> set[str]:
    """Top-level packages that a module imports anywhere, its own left out."""
    nodes = list(ast.walk(tree(module)))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


def layer_of(module: str) -> str:
    return module.partition("/")[0].removesuffix(".py")


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(layer imported, at module level) for every import of this package; those for type checkers left out."""
    folder = ["forgather_dsl", *module.split("/")[:-1]]

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from visit(other, top)
            elif isinstance(child, ast.Import):
                yield from ((layer, top) for alias in child.names if (layer := named(alias.name.split("."))))
            elif isinstance(child, ast.ImportFrom):
                base = folder[: len(folder) - child.level + 1] if child.level else []
                parts = base + (child.module or "").split(".") if child.module else base
                for alias in child.names:
                    if layer := named([*parts, alias.name]):
                        yield layer, top
            else:
                inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from visit(child, top and not inner)

    def named(parts: list[str]) -> str | None:
        if parts[0] != "forgather_dsl":
            return None
        return parts[1] if len(parts) > 1 and parts[1] in LAYERS else "__init__"

    yield from visit(tree(module), True)


def test_models_stand_alone():
    assert {layer for m in MODULES if layer_of(m) == "models" for layer, _ in imports(m)} <= {"models"}


def test_codegen_knows_nothing_of_this_package():
    others = {name for m in CODEGEN for name in imported(m)} - set(sys.stdlib_module_names) - {"torch", "codegen"}
    assert others <= {"safetensors"}


def test_codegen_is_used_where_models_leave():
    assert {layer_of(m) for m in MODULES if "codegen" in imported(m)} <= {"interop", "cli"}


def test_packages_do_not_import_each_other_in_a_circle():
    edges = {(layer_of(m), layer) for m in MODULES for layer, top in imports(m) if top and layer != layer_of(m)}
    remaining = {name for edge in edges for name in edge}
    while free := {name for name in remaining if not any(a == name and b in remaining for a, b in edges)}:
        remaining -= free
    assert not remaining


def test_what_comes_before_launch_imports_no_torch():
    """One process per group of modules; rich too, which is for terminals."""
    groups = ("", "errors", "dsl", "specs", "plan", "cli")
    names = [
        "forgather_dsl." + m.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for m in MODULES
        if layer_of(m) in groups
    ]
    names += ["forgather_dsl", "forgather_dsl.__main__", "forgather_dsl.train.trainer", "forgather_dsl.parallel.launch"]
    heavy = ("torch", "transformers", "datasets", "pyarrow", "pandas", "rich", "pydantic")
    code = f"import importlib, sys\nfor n in {names}: importlib.import_module(n)\nprint([h for h in {heavy} if h in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_data_imports_no_torch():
    for module in (m for m in MODULES if layer_of(m) == "data"):
        assert "torch" not in imported(module), module


def _public_methods(node: ast.ClassDef) -> list[ast.FunctionDef]:
    return [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]


def _explained(method: ast.FunctionDef, module: str) -> bool:
    """It has a docstring, is the setter of a property that has one, or overrides a method that has one."""
    if ast.get_docstring(method) or any(
        isinstance(d, ast.Attribute) and d.attr == "setter" for d in method.decorator_list
    ):
        return True
    return method.name in _documented(layer_of(module))


@functools.cache
def _documented(layer: str) -> set[str]:
    trees = [tree(m) for m in EVERY if layer_of(m) == layer]
    classes = [node for t in trees for node in ast.walk(t) if isinstance(node, ast.ClassDef)]
    return {method.name for node in classes for method in _public_methods(node) if ast.get_docstring(method)}


def imports_point_up_the_list(module: str) -> Iterator[str]:
    own = layer_of(module)
    for layer, top in imports(module) if module != "__init__.py" and module in MODULES else ():
        if layer != own and (top or (own, layer) not in LATE_IMPORTS) and LAYERS[layer] >= LAYERS[own]:
            yield f"{own} imports {layer}"


def says_what_it_is(module: str) -> Iterator[str]:
    lines = (ast.get_docstring(tree(module)) or "").splitlines()
    if not 1 <= len(lines) <= MOST_DOCSTRING_LINES:
        yield f"docstring of {len(lines)} lines"


def public_names_have_docstrings(module: str) -> Iterator[str]:
    for node in tree(module).body:
        if not isinstance(node, (ast.ClassDef, ast.FunctionDef)) or node.name.startswith("_"):
            continue
        if ast.get_docstring(node) is None:
            yield f"{node.name} has no docstring"
        if isinstance(node, ast.ClassDef):
            bare = [method.name for method in _public_methods(node) if not _explained(method, module)]
            yield from (f"{node.name}.{name} has no docstring" for name in bare)


def file_and_functions_are_short(module: str) -> Iterator[str]:
    lines = len(text(module).splitlines())
    if lines > MOST_LINES and module not in LONG_FILES:
        yield f"{lines} lines"
    for node in ast.walk(tree(module)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MOST_FUNCTION_LINES and f"{module}:{node.name}" not in LONG_FUNCTIONS:
                yield f"{node.name}: {length} lines"


def names_say_something(module: str) -> Iterator[str]:
    names = [Path(module).stem, *Path(module).parent.parts]
    names += [n.name for n in ast.walk(tree(module)) if isinstance(n, (ast.ClassDef, ast.FunctionDef))]
    yield from (f"the name {name}" for name in names if FORBIDDEN.search(name))


def annotations_are_not_evaluated(module: str) -> Iterator[str]:
    first = [node for node in tree(module).body if isinstance(node, ast.ImportFrom)][:1]
    if not module.endswith("__init__.py") and [node.module for node in first] != ["__future__"]:
        yield "does not begin with from __future__ import annotations"


RULES = (
    imports_point_up_the_list,
    says_what_it_is,
    public_names_have_docstrings,
    file_and_functions_are_short,
    names_say_something,
    annotations_are_not_evaluated,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rules(rule: Callable[[str], Iterator[str]]) -> None:
    broken = [f"{module}: {problem}" for module in EVERY for problem in rule(module)]
    assert not broken, "\n".join(broken)


def test_exceptions_are_still_needed():
    assert set(LONG_FILES) <= {m for m in EVERY if len(text(m).splitlines()) > MOST_LINES}
    late = {(layer_of(m), layer) for m in MODULES for layer, top in imports(m) if not top}
    assert set(LATE_IMPORTS) <= late


def concrete_specs() -> list[type]:
    """Every Lazy of specs/ that builds something of ours."""
    found = [getattr(forgather_dsl.specs, name) for name in forgather_dsl.specs.__all__]
    lazies = [cls for cls in found if isinstance(cls, type) and issubclass(cls, Lazy) and not cls.__abstract__]
    return [cls for cls in lazies if str(cls.__target__ or "").startswith("forgather_dsl.")]


@pytest.mark.parametrize("cls", concrete_specs(), ids=lambda cls: cls.__name__)
def test_specs_and_constructors_have_the_same_names(cls):
    """Fields and runtime names are the parameters, all of them, and the constructor owns no default."""
    parameters = inspect.signature(import_target(cls)).parameters
    more = OWN_DEFAULTS.get(str(cls.__target__), set())
    runtime = {name for name in cls.__runtime__ if name in parameters}  # of the rest the target is not told
    assert set(parameters) - more == set(cls.__fields__) | runtime
    if str(cls.__target__) not in OWN_DEFAULTS:
        assert [name for name, p in parameters.items() if p.default is not p.empty] == []


def test_there_are_specs_to_compare():
    assert len(concrete_specs()) > 25
