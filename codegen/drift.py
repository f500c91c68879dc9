"""Whether a file still holds the source of what was imported: the code of each function, compiled anew, is the same."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from types import CodeType
from typing import Any

from .effects import assigned
from .errors import Problem
from .modules import Module
from .record import code_key
from .scopes import FUNCTIONS

_BY_COMPILE = ("__resume_at_", "torch_dynamo_resume_in_")  # what torch.compile puts beside the functions that it breaks
_HINT = "import the module again, in a new process, so that the model is that of the file"


def drifted(module: Module) -> Problem | None:
    """A problem when functions of a module are not those of its text."""
    if type(getattr(module.live, "__loader__", None)).__name__ == "AssertionRewritingHook":
        return None  # pytest compiles something else than the text
    try:
        compiled = compile(module.text, module.file, "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    known: dict[tuple[str, int], CodeType] = {}
    _collect(compiled, known)
    for name, function in _functions(module):
        code = inspect.unwrap(function).__code__
        found = known.get((code.co_name, code.co_firstlineno))
        if found is None or not _same(found, code):
            reason = f"{module.name} was edited after it was imported: {name} is not what the file says"
            line = code.co_firstlineno
            lines = module.text.split("\n")
            text = lines[line - 1] if line <= len(lines) else ""
            return Problem(reason, _HINT, module.file, line, text)
    return None


def replaced(module: Module, name: str, node: ast.stmt, live: Any) -> Problem | None:
    """A problem when a name of a module no longer holds what its text says."""
    plain = isinstance(node, FUNCTIONS) and not node.decorator_list
    if plain and not (inspect.isfunction(live) and code_key(live) == (module.name, node.lineno, name)):
        return _changed(module, node, f"{module.name}.{name} was replaced after its definition")
    if isinstance(node, ast.ClassDef) and isinstance(live, type):
        own = assigned(module, name)
        for statement in node.body:
            if found := _changed_member(statement, live, own):
                return _changed(
                    module, statement, f"{module.name}.{name}.{found} was replaced after the class was defined"
                )
    return _read_between(module, name)


def _changed_member(statement: ast.stmt, live: type, own: set[str]) -> str | None:
    """The name of a member of a class that is not what a statement of its body made it."""
    if isinstance(statement, FUNCTIONS) and not statement.decorator_list and statement.name not in own:
        held = live.__dict__.get(statement.name)
        held = getattr(held, "__func__", held)  # __init_subclass__ and the like
        key = code_key(held) if inspect.isfunction(held) else None
        return (
            None
            if (key is not None and key.line <= statement.lineno <= key.line + 1) or _made(held)
            else statement.name
        )
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        name = statement.targets[0].id
        try:
            literal = ast.literal_eval(statement.value)
        except (ValueError, TypeError, SyntaxError):
            return None
        plain = isinstance(literal, (int, float, str, bool, type(None)))
        if (
            plain
            and name not in own
            and isinstance(live.__dict__.get(name), type(literal))
            and live.__dict__[name] != literal
        ):
            return name
    return None


def _made(held: Any) -> bool:
    """Made anew by a decorator of the class or its metaclass, such as the methods of a named tuple."""
    return held is None or not inspect.isfunction(held) or hasattr(held, "__wrapped__")


def _read_between(module: Module, name: str) -> Problem | None:
    """A name that is bound several times, and read by a definition while it still held something else."""
    bound = [s for s, alias in module.bindings.get(name, []) if alias is None and s in module.tree.body]
    if len(bound) < 2 or all(isinstance(s, ast.AugAssign) for s in bound[1:]):
        return None
    first, last = bound[0].lineno, bound[-1].lineno
    for node in _now(module.tree):
        if (
            isinstance(node, ast.Name)
            and node.id == name
            and isinstance(node.ctx, ast.Load)
            and first < node.lineno < last
        ):
            return _changed(module, node, f"{name} is assigned twice, and what it held in between is used here")
    return None


def _now(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: bodies of functions left out."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, (*FUNCTIONS, ast.Lambda)):
            for part in [*child.args.defaults, *child.args.kw_defaults, *getattr(child, "decorator_list", [])]:
                if part is not None:
                    yield part
                    yield from _now(part)
        else:
            yield from _now(child)


def _changed(module: Module, node: Any, reason: str) -> Problem:
    return Problem(reason, "give each its own name, in the source", module.file, node.lineno, module.line(node.lineno))


def _collect(code: CodeType, known: dict[tuple[str, int], CodeType]) -> None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            known[constant.co_name, constant.co_firstlineno] = constant
            _collect(constant, known)


def _functions(module: Module) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in list(vars(module.live).items()):
        if name.startswith(_BY_COMPILE):
            continue
        if isinstance(value, type) and value.__module__ == module.name:
            held = [(f"{name}.{k}", v) for k, v in vars(value).items()]
        else:
            held = [(name, value)]
        for label, item in held:
            item = getattr(item, "__func__", item)
            item = item.fget if isinstance(item, property) and item.fget else item
            inner = inspect.unwrap(item) if inspect.isfunction(item) else None
            if (
                inspect.isfunction(inner)  # compiled code may wrap what is none
                and inner.__code__.co_filename == module.file
                and "__generated" not in inner.__code__.co_filename
            ):
                found.append((label, inner))
    return found


def _same(a: CodeType, b: CodeType) -> bool:
    if a.co_code != b.co_code or a.co_names != b.co_names or len(a.co_consts) != len(b.co_consts):
        return False
    return all(
        _same(x, y)
        if isinstance(x, CodeType) and isinstance(y, CodeType)
        else type(x) is type(y) and (x == y or repr(x) == repr(y))
        for x, y in zip(a.co_consts, b.co_consts)
    )
