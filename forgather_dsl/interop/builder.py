"""From the spec of a model to the text of a Python module that builds it: plain functions instead of factories.

`text_of` writes an import per target, a function per factory with the arguments that the model was seen to pass, and
`build()`. `loaded` makes a module of the text. That is what codegen traces; it knows nothing of specs.
"""

from __future__ import annotations

import hashlib
import linecache
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch

from ..dsl import Call, Cycle, Lazy, build
from ..dsl.annotations import is_factory
from ..dsl.build import Calls, callee, parameters, recorded_calls
from ..dsl.check import said_at
from ..dsl.errors import place
from ..dsl.fields import annotation_of
from ..dsl.graph import join
from ..errors import UserError
from .literals import Names, NotWritten, literal

PREFIX = "built_"  # of the modules' names
_WIDTH = 100


class Builder(NamedTuple):
    """The text of a module that builds a model with `build()`."""

    text: str
    targets: tuple[Any, ...]  # the classes and functions that it imports


def text_of(model: Lazy[Any]) -> Builder:
    """The module that builds what `build(model)` does.

    Raises:
        UserError: with every value that no source can say: a lambda, a class inside a function, a `__build__`.
        ConfigError: the model does not build.
    """
    with recorded_calls() as calls, torch.device("meta"):
        build(model)
    writer = _Writer(model, calls)
    root: list[str] = []
    try:
        root = writer.call(model, {}, "")
    except NotWritten as reason:
        writer.tell("", model, reason)
    if writer.problems:
        raise UserError("this model cannot be written as source:\n  " + "\n  ".join(writer.problems))
    body = [*(f"    {line}" for line in writer.shared), f"    return {_wrapped(root, 4)}"]
    functions = [*writer.functions, "def build():\n" + "\n".join(body)]
    return Builder(
        "\n\n\n".join(["\n".join(writer.names.statements()), *functions]) + "\n", tuple(writer.names.objects)
    )


def loaded(text: str) -> ModuleType:
    """The text as an imported module; the same text is the same module, under a name that depends on it alone."""
    name = PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12]
    if name not in sys.modules:
        module, file = ModuleType(name), f"<{name}>"
        module.__file__ = file
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)  # where inspect looks
        exec(compile(text, file, "exec"), vars(module))
        sys.modules[name] = module
    return sys.modules[name]


class _Writer:
    """One pass over a model: expressions for what is built once, functions for what is built at each call."""

    def __init__(self, model: Lazy[Any], calls: Calls) -> None:
        self.model, self.calls = model, calls
        self.names = Names()
        self.names.new("build")
        self.functions: list[str] = []
        self.shared: list[str] = []  # statements for what several fields hold
        self.problems: list[str] = []
        self.uses = Counter(_held(model))
        self._inside = 0  # functions that are being written
        self._made: dict[Any, str] = {}  # functions by what they say, shared objects by id

    def call(self, lazy: Lazy[Any], context: Mapping[str, bool], path: str) -> list[str]:
        """The pieces of `Target(a=1, b=b)`: the opening, its arguments, the end."""
        if hasattr(type(lazy), "__build__"):
            raise NotWritten(
                f"{type(lazy).__name__} builds by its own __build__ ({place(*type(lazy).__line__)}); name a class or "
                "function as its target instead"
            )
        target, values = callee(lazy)
        declared = parameters(target)
        wanted = [name for name in context if (declared is None or name in declared) and name not in values]
        path_of = lazy.target if isinstance(lazy, Call) else type(lazy).__target__
        try:
            opening = self.names.of(target, path_of if isinstance(path_of, str) else "")
        except NotWritten as reason:
            opening = "None"
            self.tell(path, lazy, reason)
        given = {name: self._argument(lazy, name, value, join(path, name)) for name, value in values.items()}
        said = dict(zip(wanted, wanted)) | given
        order = [name for name in declared or () if name in said]
        return [opening, *(f"{name}={said[name]}" for name in dict.fromkeys([*order, *said]))]

    def _argument(self, lazy: Lazy[Any], name: str, value: Any, path: str) -> str:
        try:
            if (
                isinstance(value, Lazy)
                and name in type(lazy).__fields__
                and is_factory(annotation_of(type(lazy), name))
            ):
                return self._function(value, name, self._context(value), path)
            return self._value(value, name, path)
        except NotWritten as reason:
            self.tell(path, lazy, reason)
            return "None"

    def tell(self, path: str, lazy: Lazy[Any], reason: NotWritten) -> None:
        """Keep a problem, with the line that said so."""
        where = said_at(self.model, path) or f" ({place(*type(lazy).__line__)})"
        self.problems.append(f"{path or type(lazy).__name__}: {reason}{where}")

    def _value(self, value: Any, name: str, path: str) -> str:
        if isinstance(value, Lazy):
            if self._inside or self.uses[id(value)] == 1:
                return _flat(self.call(value, {}, path))
            if id(value) not in self._made:
                said = _flat(self.call(value, {}, path))
                self._made[id(value)] = self.names.new(name)
                self.shared.append(f"{self._made[id(value)]} = {said}")
            return self._made[id(value)]
        if isinstance(value, (tuple, list, frozenset, set)):
            items = [self._value(item, name, f"{path}[{i}]") for i, item in enumerate(_ordered(value))]
            if isinstance(value, (frozenset, set)):
                return f"{type(value).__name__}([{', '.join(items)}])"
            return (
                f"({', '.join(items)}{',' * (len(items) == 1)})"
                if isinstance(value, tuple)
                else f"[{', '.join(items)}]"
            )
        if isinstance(value, Mapping):
            pairs = [f"{literal(k, self.names)}: {self._value(v, name, path)}" for k, v in value.items()]
            return "{" + ", ".join(pairs) + "}"
        return literal(value, self.names)

    def _context(self, lazy: Lazy[Any]) -> dict[str, bool]:
        """Names that the factory was called with, and whether always."""
        calls = self.calls.get(id(lazy), [])
        names = dict.fromkeys(name for call in calls for name in call)
        return {name: all(name in call for call in calls) for name in names}

    def _function(self, lazy: Lazy[Any], name: str, context: Mapping[str, bool], path: str) -> str:
        """The name of the function that builds `lazy` at each call, written if there is none yet."""
        self._inside += 1
        if isinstance(lazy, _CYCLE):
            body = self._cycle(lazy, name, context, path)
        else:
            body = [f"    return {_flat(self.call(lazy, context, path))}"]
        self._inside -= 1
        optional = [f"{name}=None" for name, always in context.items() if not always]
        parameters_ = ", ".join([*(name for name, always in context.items() if always), *optional])
        said = (parameters_, *body)
        if said not in self._made:
            self._made[said] = self.names.new(name)
            self.functions.append(f"def {self._made[said]}({parameters_}):\n" + "\n".join(body))
        return self._made[said]

    def _cycle(self, lazy: Any, name: str, context: Mapping[str, bool], path: str) -> list[str]:
        """`if layer_index % n == i: return ...`, the option of most layers last."""
        options, count = _distinct(lazy.options), len(lazy.options)
        *others, (last, _) = sorted(options, key=lambda option: len(option[1]))
        lines = []
        for option, layers in others:
            which = f"== {layers[0]}" if len(layers) == 1 else f"in {tuple(layers)!r}"
            lines += [
                f"    if layer_index % {count} {which}:",
                f"        return {self._option(option, name, context, path)}",
            ]
        return [*lines, f"    return {self._option(last, name, context, path)}"]

    def _option(self, option: Any, name: str, context: Mapping[str, bool], path: str) -> str:
        if not isinstance(option, Lazy):
            raise NotWritten(f"{option!r} is among the choices of a Cycle, which must be components")
        if isinstance(option, _CYCLE):
            return f"{self._function(option, name, context, path)}({', '.join(f'{n}={n}' for n in context)})"
        return _flat(self.call(option, context, path))


_CYCLE: Any = Cycle  # to type checkers it is a function


def _distinct(options: Sequence[Any]) -> list[tuple[Any, list[int]]]:
    """Each option once, with its places; equal ones build alike."""
    found: list[tuple[Any, list[int]]] = []
    for place_, option in enumerate(options):
        same = next((places for other, places in found if other == option), None)
        if same is None:
            found.append((option, [place_]))
        else:
            same.append(place_)
    return found


def _held(value: Any) -> Iterator[int]:
    """Ids of the components that are built once, as often as fields hold them."""
    if isinstance(value, Lazy):
        yield id(value)
        _, values = callee(value)
        for name, held in values.items():
            if not (name in type(value).__fields__ and is_factory(annotation_of(type(value), name))):
                yield from _held(held)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _held(item)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _held(item)


def _ordered(value: Any) -> list[Any]:
    return sorted(value, key=repr) if isinstance(value, (frozenset, set)) else list(value)


def _flat(pieces: Sequence[str]) -> str:
    return f"{pieces[0]}({', '.join(pieces[1:])})"


def _wrapped(pieces: Sequence[str], indent: int) -> str:
    """The call on one line where it fits, else an argument on each."""
    flat = _flat(pieces)
    if indent + len(flat) < _WIDTH:
        return flat
    pad = " " * (indent + 4)
    return "\n".join([f"{pieces[0]}(", *(f"{pad}{piece}," for piece in pieces[1:]), " " * indent + ")"])
