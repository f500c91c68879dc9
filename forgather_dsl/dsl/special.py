"""Two Lazies with a meaning of their own: `Cycle`, which alternates over layers, and `call`, the untyped way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from .errors import ConfigError, caller, place
from .imports import import_path
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
        options: tuple = attrs.field(default=REQUIRED, validator=attrs.validators.min_len(1))

        def __init__(self, *options, **values):
            super().__init__(**({"options": tuple(options)} if options else values))
            if "options" not in self.__dict__["__given__"]:
                raise ConfigError(f"Cycle() needs at least one option: Cycle(A(), B()) ({place(*caller())})")

        def __choose__(self, context):
            if "layer_index" not in context:
                raise ConfigError("Cycle alternates over layers; what calls this factory does not say its layer_index")
            return self.options[context["layer_index"] % len(self.options)]


class Call(Lazy[Any]):
    """A call of any importable function or class, unchecked. Made by `call`."""

    __universal__ = True
    target: str = REQUIRED
    arguments: Mapping[str, Any] = MappingProxyType({})

    def __call_of__(self) -> tuple[Callable[..., Any], Mapping[str, Any]]:
        found = import_path(self.target)
        if not callable(found):
            raise ConfigError(f"call({self.target!r}): {found!r} cannot be called")
        return found, self.arguments


def call(target: str, /, **arguments: Any) -> Any:
    """`call("package.module:function", x=1)`: built by calling it. Names and types are not checked until then.

    Lists and dictionaries among the arguments are frozen, and arrive as tuples and dictionaries.
    """
    return Call(target=target, arguments=arguments)
