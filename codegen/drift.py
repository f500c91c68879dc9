"""Whether a file still holds the source of what was imported: the code of each function, compiled anew, is the same."""

from __future__ import annotations

import inspect
from types import CodeType
from typing import Any

from .errors import Problem
from .modules import Module

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


def _collect(code: CodeType, known: dict[tuple[str, int], CodeType]) -> None:
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            known[constant.co_name, constant.co_firstlineno] = constant
            _collect(constant, known)


def _functions(module: Module) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for name, value in list(vars(module.live).items()):
        if isinstance(value, type) and value.__module__ == module.name:
            held = [(f"{name}.{k}", v) for k, v in vars(value).items()]
        else:
            held = [(name, value)]
        for label, item in held:
            item = getattr(item, "__func__", item)
            item = item.fget if isinstance(item, property) and item.fget else item
            inner = inspect.unwrap(item) if inspect.isfunction(item) else None
            if inner is not None and inner.__code__.co_filename == module.file and "__generated" not in inner.__code__.co_filename:
                found.append((label, inner))
    return found


def _same(a: CodeType, b: CodeType) -> bool:
    if a.co_code != b.co_code or a.co_names != b.co_names or len(a.co_consts) != len(b.co_consts):
        return False
    return all(
        _same(x, y) if isinstance(x, CodeType) and isinstance(y, CodeType) else type(x) is type(y) and repr(x) == repr(y)
        for x, y in zip(a.co_consts, b.co_consts)
    )
