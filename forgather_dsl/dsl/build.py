"""The only place that imports or constructs anything: one Lazy object is one built object within one memo.

A field annotated `Factory[...]` is handed over as a callable. Every failure gets a note with the path and line of the
Lazy that was being built.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from .annotations import is_factory
from .errors import ConfigError, suggest
from .fields import annotation_of, verify
from .graph import holds_lazy, join
from .imports import import_target
from .lazy import Lazy, given

T = TypeVar("T")
Memo = dict[int, tuple[Any, Lazy[Any]]]
Calls = dict[int, list[tuple[str, ...]]]
_calls: ContextVar[Calls | None] = ContextVar("calls", default=None)


class Site(NamedTuple):
    """Where something is being built: the Lazy that `build` was asked for, and the path below it."""

    root: Lazy[Any]
    path: str = ""

    def below(self, name: str) -> Site:
        """The site of a field or an item."""
        return Site(self.root, join(self.path, name))

    def __str__(self) -> str:
        from .check import said_at

        name = type(self.root).__name__
        return f"{name}.{self.path}{said_at(self.root, self.path)}" if self.path else name


def build(lazy: Lazy[T], /, *, memo: Memo | None = None, **runtime: Any) -> T:
    """Import the target of `lazy` and call it with its fields (children first) and `runtime`.

    Args:
        memo: shared between calls that must share objects; keeps each Lazy alive beside what it became.
        runtime: what only the caller knows (`params=`, `dim=`); may not overlap the fields.

    Raises:
        ConfigError: a field is missing, the target does not exist or takes other arguments, or `runtime` overlaps the fields.
    """
    given(lazy)
    return _build(lazy, {} if memo is None else memo, runtime, Site(lazy))


def _build(value: Any, memo: Memo, runtime: Mapping[str, Any], site: Site) -> Any:
    if isinstance(value, Lazy):
        if id(value) not in memo:
            memo[id(value)] = (_construct(value, memo, runtime, site), value)  # ids are reused: keep the Lazy alive
        return memo[id(value)][0]
    if isinstance(value, tuple) and holds_lazy(value):
        return tuple(_build(item, memo, {}, site.below(f"[{i}]")) for i, item in enumerate(value))
    if isinstance(value, Mapping):
        return {k: _build(item, memo, {}, site.below(f"[{k!r}]")) for k, item in value.items()}
    return value


def _construct(lazy: Lazy[Any], memo: Memo, runtime: Mapping[str, Any], site: Site) -> Any:
    cls = type(lazy)
    overlap = sorted(set(runtime) & set(cls.__fields__))
    if overlap:
        raise ConfigError(
            f"build({cls.__name__}, ...): {', '.join(overlap)} {'is a field' if len(overlap) == 1 else 'are fields'}; "
            f"set with replace(x, {overlap[0]}=...), not at build"
        )
    try:
        if hasattr(lazy, "__choose__"):
            raise ConfigError(f"{cls.__name__} alternates over layers; it stands in a field annotated Factory[...]")
        hook = getattr(lazy, "__build__", None)
        if hook is not None:
            _verify_together(lazy)
            return hook(functools.partial(_build, memo=memo, runtime={}, site=site), **runtime)
        target, values = callee(lazy)
        made = {name: _argument(lazy, name, value, memo, site) for name, value in values.items()}
        _verify_call(lazy, target, {**made, **runtime})
        return target(**made, **runtime)
    except Exception as error:
        if not getattr(error, "_at_lazy", False):
            error.add_note(f"while building {site}: {lazy!r}")
            error._at_lazy = True  # type: ignore[attr-defined]
        raise


def callee(lazy: Lazy[Any]) -> tuple[Callable[..., Any], Mapping[str, Any]]:
    """What to call and with which values, not yet built. A class may say so itself, in `__call_of__`."""
    own = getattr(lazy, "__call_of__", None)
    if own is not None:
        return own()
    _verify_together(lazy)
    return import_target(type(lazy)), {name: getattr(lazy, name) for name in type(lazy).__fields__}


def _verify_together(lazy: Lazy[Any]) -> None:
    """Validators once more, with the instance, for those that look at other fields."""
    for name, attribute in type(lazy).__fields__.items():
        if attribute.validator is not None:
            verify(type(lazy), name, getattr(lazy, name), lazy)


def _argument(lazy: Lazy[Any], name: str, value: Any, memo: Memo, site: Site) -> Any:
    fields = type(lazy).__fields__
    if isinstance(value, Lazy) and name in fields and is_factory(annotation_of(type(lazy), name)):
        return LazyFactory(value, site.below(name))
    return _build(value, memo, {}, site.below(name))


class LazyFactory:
    """Makes a new object of one Lazy at each call, with what the call adds (`dim=`, `layer_index=`).

    Of the context that a caller offers, the target gets what its signature declares.
    """

    def __init__(self, lazy: Lazy[Any], site: Site | None = None) -> None:
        self.lazy, self.site = lazy, site or Site(lazy)

    def __call__(self, **context: Any) -> Any:
        lazy, calls = self.lazy, _calls.get()
        if calls is not None:
            calls.setdefault(id(lazy), []).append(tuple(context))
        while hasattr(lazy, "__choose__"):
            lazy = lazy.__choose__(context)  # type: ignore[attr-defined]
        if not isinstance(lazy, Lazy):
            raise ConfigError(f"{self.site}: {lazy!r} is among the choices, which must be components")
        return _build(lazy, {}, _wanted(lazy, context), self.site)

    def __repr__(self) -> str:
        return f"LazyFactory({self.lazy!r})"


@contextlib.contextmanager
def recorded_calls() -> Iterator[Calls]:
    """The names of the arguments of every call of a factory from here on, by the id of the factory's Lazy."""
    calls: Calls = {}
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)


def _wanted(lazy: Lazy[Any], context: Mapping[str, Any]) -> dict[str, Any]:
    hook = getattr(lazy, "__build__", None)
    target, values = (hook, type(lazy).__fields__) if hook is not None else callee(lazy)
    declared = parameters(target)
    return {k: v for k, v in context.items() if (declared is None or k in declared) and k not in values}


def parameters(target: Callable[..., Any]) -> Mapping[str, None] | None:
    """Names that a target takes as keywords, in order; None when it takes any."""
    signature = _signature(target)
    if signature is None:
        return {}
    found = signature.parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in found):
        return None
    return dict.fromkeys(p.name for p in found if p.kind is not p.POSITIONAL_ONLY)


@functools.lru_cache(maxsize=512)
def _signature(target: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(target)
    except (ValueError, TypeError):  # some built-in types do not tell
        return None


def _verify_call(lazy: Lazy[Any], target: Callable[..., Any], values: Mapping[str, Any]) -> None:
    """Raise ConfigError when the target does not take these arguments, before it runs."""
    signature = _signature(target)
    if signature is None:
        return
    try:
        signature.bind(**values)
    except TypeError as error:
        cls, known = type(lazy), parameters(target) or {}
        found = [f"takes no {name!r}{suggest(name, known, 'it takes')}" for name in values if name not in known]
        required = [p.name for p in signature.parameters.values() if p.default is p.empty and p.name in known]
        absent = [name for name in required if name not in values]
        if absent:
            found.append(f"needs {', '.join(absent)}")
        if set(absent) & set(cls.__runtime__):
            found.append("pass that to build, or annotate the field that holds it as Factory[...]")
        name = getattr(target, "__qualname__", repr(target))
        raise ConfigError(f"{cls.__name__} builds {name}, which {'; '.join(found) or error}") from None
