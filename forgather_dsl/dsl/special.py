"""Two Lazies with a meaning of their own: `Cycle`, which alternates over layers, and `call`, the untyped way out."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from .build import import_path
from .errors import ConfigError
from .lazy import Lazy
from .words import REQUIRED

T = TypeVar("T")

if TYPE_CHECKING:

    def Cycle(*options: T) -> T:
        """`attention = Cycle(SlidingWindow(...), GroupedQueryAttention())`: layer i gets option i modulo their number."""
        ...
else:

    class Cycle(Lazy[Any]):
        """`attention = Cycle(SlidingWindow(...), GroupedQueryAttention())`: layer i gets option i modulo their number."""

        __wildcard__ = True
        options: tuple = ()

        def __init__(self, *options, **values):
            super().__init__(**({"options": tuple(options)} if options else values))
            if not self.options:
                raise ConfigError("Cycle() needs at least one option: Cycle(A(), B())")

        def __choose__(self, context):
            if "layer_index" not in context:
                raise ConfigError("Cycle alternates over layers; this Factory field is not built per layer")
            return self.options[context["layer_index"] % len(self.options)]


class Call(Lazy[Any]):
    """A call of any importable function or class, unchecked. Made by `call`."""

    __universal__ = True
    target: str = REQUIRED
    arguments: Mapping[str, Any] = MappingProxyType({})

    def __build__(self, build: Any, **runtime: Any) -> Any:
        values = {name: build(value) for name, value in self.arguments.items()}
        return import_path(self.target)(**values, **runtime)


def call(target: str, **arguments: Any) -> Any:
    """`call("package.module:function", x=1)`: built by calling it. Names and types are not checked until then."""
    return Call(target=target, arguments=arguments)
