"""Values as source: literals, names of classes and functions, enums, dtypes, partials, lambdas, and calls that make objects."""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import sys
from typing import Any

import torch
import torch.nn as nn

from . import recover
from .evaluate import Evaluator
from .keys import Package
from .modules import Module
from .record import code_key, same

_PUBLIC = (
    "torch",
    "torch.nn",
    "torch.nn.functional",
    "torch.nn.init",
    "math",
    "operator",
    "functools",
    "torch.utils.checkpoint",
)


class Unwritable(Exception):
    """A value that has no form in source."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint or (
            "what can be written: literals, enums, dtypes, classes and functions at module level, partials of these, "
            "lambdas without closures, and objects whose constructor was seen"
        )


class Reifier(Evaluator):
    """Text for values, with marks for the names in it."""

    def reified(self, value: Any) -> str:
        """Source that gives `value`. Raises `Unwritable`."""
        if isinstance(value, enum.Enum):
            return self._enum(value)
        if value is None or value is Ellipsis or isinstance(value, (bool, int, str, bytes, complex)):
            return "..." if value is Ellipsis else _literal(value)
        if isinstance(value, float):
            finite = value == value and abs(value) != float("inf")
            return repr(value) if finite else f'float("{value}")'
        if type(value) in (tuple, list, set, frozenset, dict):
            return self._container(value)
        if type(value) is torch.Generator:
            raise Unwritable("a random generator has no source form", "let the constructor make it from a seed")
        if isinstance(value, (torch.dtype, torch.device, torch.Size, torch.layout, torch.memory_format)):
            return self._torch(value)
        if isinstance(value, torch.Tensor):
            raise Unwritable("a tensor has no source form", "let the constructor make it from numbers")
        if isinstance(value, (range, slice)):
            parts = ("start", "stop", "step")
            return f"{type(value).__name__}({', '.join(self.reified(getattr(value, p)) for p in parts)})"
        if type(value) is functools.partial:
            parts = [self.reified(value.func), *map(self.reified, value.args)]
            parts += [f"{name}={self.reified(v)}" for name, v in value.keywords.items()]
            return f"{self.mark(self.world.modules.outside('functools'))}.partial({', '.join(parts)})"
        if inspect.isfunction(value) and value.__name__ == "<lambda>":
            return self._lambda(value)
        if isinstance(value, type) or (callable(value) and getattr(value, "__qualname__", None)):
            return self._named_value(value)
        return self.made(value)

    def _enum(self, value: enum.Enum) -> str:
        cls = self.reified(type(value))
        if value.name is None or "|" in value.name:
            return f"{cls}({value.value!r})"
        return f"{cls}.{value.name}"

    def _container(self, value: Any) -> str:
        if type(value) is dict:
            return "{" + ", ".join(f"{self.reified(k)}: {self.reified(v)}" for k, v in value.items()) + "}"
        if type(value) in (set, frozenset):
            inner = ", ".join(sorted(self.reified(v) for v in value))
            if type(value) is frozenset:
                return f"frozenset({{{inner}}})" if inner else "frozenset()"
            return f"{{{inner}}}" if inner else "set()"
        inner = ", ".join(self.reified(v) for v in value)
        if type(value) is list:
            return f"[{inner}]"
        return f"({inner},)" if len(value) == 1 else f"({inner})"

    def _torch(self, value: Any) -> str:
        name = self.mark(self.world.modules.outside("torch"))
        if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
            return f"{name}.{str(value).removeprefix('torch.')}"
        if isinstance(value, torch.device):
            return f'{name}.device("{value}")'
        return f"{name}.Size([{', '.join(map(str, value))}])"

    def _named_value(self, value: Any) -> str:
        module, qualname = getattr(value, "__module__", None) or "", value.__qualname__
        if "<locals>" in qualname:
            raise Unwritable(
                f"{qualname} of {module} was made at run time and has no name at module level",
                "move it to module level, or use functools.partial of a function there with explicit values",
            )
        if inspect.ismethod(value) and not isinstance(value.__self__, type):
            raise Unwritable(f"{qualname} is bound to an object", "use a function at module level")
        head, _, rest = qualname.partition(".")
        live = sys.modules.get(module)
        if live is not None and self.world.modules.traced(module):
            if (
                functools.reduce(
                    lambda o, n: getattr(o, n, None), rest.split(".") if rest else [], getattr(live, head, None)
                )
                is value
            ):
                key = self.world.modules.resolve(self.world.modules.read(module), head)
                assert not isinstance(key, Package)
                return self._mark_of(key) + (f".{rest}" if rest else "")
            raise Unwritable(
                f"{module}.{qualname} is not what the module holds under that name",
                "give it its own name at module level",
            )
        for candidate in (*_PUBLIC, module):
            name = getattr(value, "__name__", "")
            if getattr(sys.modules.get(candidate), name, None) is value:
                if candidate == "builtins":
                    return name
                usual = candidate in ("torch", "torch.nn", "torch.nn.functional", "math", "operator", "functools")
                if usual:
                    return f"{self.mark(self.world.modules.outside(candidate))}.{name}"
                return self.mark(self.world.modules.outside(candidate, name))
        raise Unwritable(f"{module}.{qualname} cannot be imported under its name")

    def _mark_of(self, key: Any) -> str:
        return self.mark(key) if not hasattr(key, "name") or hasattr(key, "module") else key.name

    def _lambda(self, value: Any) -> str:
        if value.__closure__:
            names = ", ".join(value.__code__.co_freevars)
            raise Unwritable(
                f"a lambda uses {names} of the function around it", "use functools.partial with explicit values"
            )
        module = self.world.modules.read(value.__module__)
        line = value.__code__.co_firstlineno
        found = [n for n in ast.walk(module.tree) if isinstance(n, ast.Lambda) and n.lineno == line]
        if len(found) != 1:
            raise Unwritable(f"{len(found)} lambdas start on {module.file}:{line}", "write one lambda a line, or a def")
        return f"({self.elsewhere(module, found[0])})"

    def elsewhere(self, module: Module, node: ast.expr, texts: dict[str, str] | None = None) -> str:
        """The text of an expression of another module, in names of the file. `texts` stand for parameters."""
        raise NotImplementedError

    # objects

    def made(self, value: Any) -> str:
        """The call that makes an object again. Raises `Unwritable`."""
        cls = type(value)
        if cls in self.world.configs:
            return self._config(value)
        if not self.world.modules.traced(cls.__module__) and not isinstance(value, nn.Module):
            return self._recovered(value)
        seen = self.world.record.made.get(id(value))
        if seen is None:
            return self._recovered(value)
        names = [n for n in seen.arguments if not n.startswith("*")]
        return self.call_text(value, {n: seen.arguments[n] for n in names}, seen.arguments)

    def _recovered(self, value: Any) -> str:
        foreign = not self.world.modules.traced(type(value).__module__)
        try:
            arguments = recover.recover(value)
        except recover.NotRecovered as error:
            raise Unwritable(
                f"an object of {type(value).__module__}.{type(value).__qualname__} has no source form: {error}"
            ) from None
        if isinstance(value, nn.Module) or not recover.rebuilds(value, arguments, foreign=foreign):
            raise Unwritable(
                f"an object of {type(value).__module__}.{type(value).__qualname__} has no source form: how it was made was not seen",
                "make it inside build=, or give the constructor the arguments from which it can make it",
            )
        return self.call_text(value, arguments, {})

    def call_text(self, value: Any, arguments: dict[str, Any], starred: dict[str, Any]) -> str:
        """`Class(name=value, ...)` without the parameters that left the signature and those at their defaults."""
        init = type(value).__init__
        key = code_key(init)
        parts: list[str] = []
        parameters = inspect.signature(init).parameters
        for name, item in arguments.items():
            parameter = parameters.get(name)
            if key and self.world.removable((key, name)):
                continue
            if parameter is not None and parameter.default is not parameter.empty and same(parameter.default, item):
                continue
            positional = parameter is not None and parameter.kind is parameter.POSITIONAL_ONLY
            parts.append(self.reified(item) if positional else f"{name}={self.reified(item)}")
        for name, items in starred.items():
            if name.startswith("**"):
                parts += [f"{k}={self.reified(v)}" for k, v in items.items()]
            elif name.startswith("*") and items:
                raise Unwritable(
                    f"{type(value).__qualname__} was called with *{name[1:]}", "pass these arguments by name"
                )
        self.called([key] if key else [])
        return f"{self.reified_class(type(value))}({', '.join(parts)})"

    def reified_class(self, cls: type) -> str:
        """The name of a class that is called right here."""
        return self.reified(cls)

    def _config(self, value: Any) -> str:
        first = self.world.configs[type(value)][0]
        parts: list[str] = []
        for name in config_fields(type(value)):
            if value is not first and not _equal(getattr(value, name), getattr(first, name)):
                parts.append(f"{name}={self.reified(getattr(value, name))}")
        return f"{self.reified(type(value))}({', '.join(parts)})"


def config_fields(cls: type) -> list[str]:
    """The names of the fields of a dataclass, an attrs class or a pydantic model."""
    for attribute in ("__dataclass_fields__", "model_fields", "__pydantic_fields__"):
        if isinstance(found := getattr(cls, attribute, None), dict):
            return list(found)
    return [a.name for a in getattr(cls, "__attrs_attrs__", ())]


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a is b or a == b)
    except Exception:
        return False


def _literal(value: Any) -> str:
    text = repr(value)
    if isinstance(value, str) and text.startswith("'") and '"' not in text:
        inner = text[1:-1].replace("\\'", "'")
        return f'"{inner}"'
    return text
