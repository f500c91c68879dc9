"""Stand-ins for code that data names and nobody vouched for: they print, compare and pickle alike, and refuse to run.

An inert class derives from the nearest base in this package, with the fields that base lacks; if the original had code of
its own to build, building raises Untrusted. An inert object stands for a function.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .errors import ConfigError, Untrusted
from .graph import join, walk
from .lazy import Lazy

PACKAGE = __name__.partition(".")[0]
_VOCABULARY = (f"{PACKAGE}.dsl", f"{PACKAGE}.specs")
ADVICE = "pass --trust (trust=True) to import it"


class Origin(NamedTuple):
    """What the data says about a class: its path, its nearest base in this package, and the code it builds, if its own."""

    type: str
    base: str
    target: str | None = None


def ours(cls: type) -> bool:
    """Whether a class belongs to this package."""
    return cls.__module__ == PACKAGE or cls.__module__.startswith(PACKAGE + ".")


def in_package(path: str) -> bool:
    """Whether `module:Class` names something in this package."""
    return re.fullmatch(rf"{PACKAGE}(\.\w+)*:\w+(\.\w+)*", path) is not None


def package_class(path: str) -> Any:
    """A Lazy class of this package. Only modules of the vocabulary, or ones already imported, are looked into."""
    module, _, name = path.partition(":")
    known = module in sys.modules or any(module == m or module.startswith(m + ".") for m in _VOCABULARY)
    try:
        found: Any = importlib.import_module(module) if known else None
    except ModuleNotFoundError:
        found = None
    for part in name.split("."):
        found = getattr(found, part, None)
    if not (isinstance(found, type) and issubclass(found, Lazy) and ours(found) and found.__qualname__ == name):
        raise Untrusted(f"{path} is not a class that an experiment is made of")
    return found


def inert_class(origin: Origin, names: tuple[str, ...]) -> Any:
    """The stand-in for a class that was not imported. Raises ConfigError for names that no class could have."""
    base = package_class(origin.base)
    return _inert_class(base, origin, tuple(n for n in names if n not in base.__fields__))


@functools.lru_cache(maxsize=512)  # one class each, so that two readings are equal
def _inert_class(base: Any, origin: Origin, extra: tuple[str, ...]) -> Any:
    name = origin.type.rpartition(":")[2].rpartition(".")[2]
    wrong = [n for n in (name, *extra) if not n.isidentifier() or n.startswith("_")]
    if wrong:
        raise ConfigError(f"{wrong[0]!r} is not a name that a class or field can have")
    body: dict[str, Any] = {"__annotations__": dict.fromkeys(extra, Any), "__module__": base.__module__}
    body["__origin__"] = origin
    if origin.target is not None:
        body["__build__"] = _refuse
    made: Any = types.new_class(name, (base,), exec_body=lambda namespace: namespace.update(body))
    made.__line__ = origin.type, 0
    return made


class Stranger(NamedTuple):
    """A place that names code which was not imported."""

    path: str
    code: str
    runs: bool  # building it would run that code; otherwise only its name is strange, for every value is written out


def strangers(root: Any) -> Iterator[Stranger]:
    """Every stand-in below a Lazy."""
    for path, value, shared, _, _ in walk(root, strict=False):
        if isinstance(value, Lazy):
            origin = type(value).__dict__.get("__origin__")
            if origin is not None and shared is None:
                runs = "__build__" in type(value).__dict__
                yield Stranger(path, (origin.target if runs else None) or origin.type, runs)
        else:
            yield from _named(value, path)


def _named(value: Any, path: str) -> Iterator[Stranger]:
    if isinstance(value, InertObject):
        yield Stranger(path, repr(value), True)
    elif isinstance(value, (tuple, Mapping)):
        for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            if not isinstance(item, Lazy):
                yield from _named(item, join(path, f"[{name!r}]"))


def _refuse(self: Any, build: Any, **runtime: Any) -> Any:
    raise Untrusted(f"{type(self).__name__} was read from data and would run {type(self).__origin__.target}; {ADVICE}")


class InertObject:
    """A function or class that data names, unimported: it has a name, and refuses to be called."""

    __stands_for_code__ = True

    def __init__(self, path: str) -> None:
        self.__origin__ = Origin(path, "")
        self.__module__, _, self.__qualname__ = path.rpartition(":")

    def __call__(self, *args: Any, **values: Any) -> Any:
        raise Untrusted(f"{self.__origin__.type} was named by data and not imported; {ADVICE}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InertObject) and self.__origin__ == other.__origin__

    def __hash__(self) -> int:
        return hash(self.__origin__)

    def __reduce__(self) -> Any:
        return InertObject, (self.__origin__.type,)

    def __repr__(self) -> str:
        return self.__origin__.type
