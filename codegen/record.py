"""What is seen while the model is built once more: the arguments of every call, and how each object was made."""

from __future__ import annotations

import enum
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch

SIMPLE = (bool, int, float, complex, str, bytes, type(None), enum.Enum, torch.dtype, torch.device)
_MOST_CALLS = 4096  # recorded per function


class CodeKey(NamedTuple):
    """A function in the sources: module, first line with its decorators, name."""

    module: str
    line: int
    name: str


class _Varies:
    def __repr__(self) -> str:
        return "<varies>"


VARIES: Any = _Varies()


def same(a: Any, b: Any) -> bool:
    """Whether two values are one and the same for what is written about them."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(v, b[k]) for k, v in a.items())
    return isinstance(a, SIMPLE) and (a == b or (a != a and b != b))


def code_key(function: Callable[..., Any]) -> CodeKey | None:
    """The key of a Python function, under its decorators; None for anything else."""
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None)
    if code is None or not hasattr(function, "__globals__"):
        return None
    return CodeKey(function.__globals__.get("__name__", ""), code.co_firstlineno, code.co_name)


@dataclass
class Made:
    """How an instance was made: the function that got the arguments, and what they were."""

    instance: object
    code: CodeType
    arguments: dict[str, Any]


@dataclass
class Record:
    """The facts of one construction."""

    constants: dict[CodeKey, dict[str, Any]] = field(default_factory=dict)  # parameter -> its value, or VARIES
    made: dict[int, Made] = field(default_factory=dict)  # by id of the instance
    model: Any = None

    def root(self) -> dict[str, Any] | None:
        """The arguments of the model's own constructor; None when it was not seen."""
        made = self.made.get(id(self.model))
        return None if made is None else made.arguments


def arguments_of(frame: FrameType) -> dict[str, Any]:
    """Parameters and their values at the start of a call; `*args` and `**kwargs` under their starred names."""
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount
    names = code.co_varnames[:count]
    found = {name: frame.f_locals[name] for name in names if name in frame.f_locals}
    for flag, stars in ((inspect.CO_VARARGS, "*"), (inspect.CO_VARKEYWORDS, "**")):
        if code.co_flags & flag:
            name = code.co_varnames[count]
            found[stars + name] = frame.f_locals.get(name)
            count += 1
    return found


def watch(build: Callable[[], Any], traced: Callable[[str], bool]) -> Record:
    """Build once, and note every call into the modules that `traced` accepts."""
    record = Record()
    counts: dict[CodeKey, int] = {}

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or not traced(frame.f_globals.get("__name__", "")):
            return
        code = frame.f_code
        key = CodeKey(frame.f_globals["__name__"], code.co_firstlineno, code.co_name)
        counts[key] = counts.get(key, 0) + 1
        arguments = arguments_of(frame)
        known = record.constants.setdefault(key, {})
        for name, value in arguments.items():
            if name not in known:
                known[name] = value
            elif known[name] is not VARIES and not same(known[name], value):
                known[name] = VARIES
        if code.co_name == "__init__" and code.co_argcount:
            instance = frame.f_locals.get(code.co_varnames[0])
            if id(instance) not in record.made and counts[key] <= _MOST_CALLS:
                rest = {k: v for k, v in arguments.items() if k != code.co_varnames[0]}
                record.made[id(instance)] = Made(instance, code, rest)

    before: Any = sys.getprofile()
    with torch.random.fork_rng(devices=[]):
        sys.setprofile(note)
        try:
            record.model = build()
        finally:
            sys.setprofile(before if before is None or callable(before) else None)
            if before is not None and not callable(before):
                before.enable()  # cProfile, which cannot be set again by sys.setprofile
    return record
