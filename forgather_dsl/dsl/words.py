"""The words that stand in a class body: REQUIRED, derived, patch, swap.

They only record what was said; `resolve` gives them meaning. Assignment replaces, `patch` merges,
`swap` changes the type and keeps what both types share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from .errors import MissingValue, PatchError, UnknownField, caller, place, suggest

if TYPE_CHECKING:
    from .lazy import Lazy

T = TypeVar("T")
P = ParamSpec("P")


class _Required:
    """The type of `REQUIRED`, of which there is one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "REQUIRED"

    def __bool__(self) -> bool:
        raise MissingValue("REQUIRED was used as a value; it marks a field that a subclass or --set has to fill")

    def __reduce__(self) -> str:
        return "REQUIRED"


REQUIRED: Any = _Required()
"""`dim: int = REQUIRED`: to be filled by a subclass, a patch or an overlay."""


class Derived:
    """A field whose default is computed from `self`; made by `derived`."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function
        self.__doc__ = function.__doc__


def derived(function: Callable[[Any], T]) -> T:
    """Make a method a field: computed once per instance, on first read, and overridable like any other.

    This is how one value reaches several places (`self.seq_len`); `super().model` works inside.
    """
    return cast(T, Derived(function))


class Patch:
    """A partial override of a field that holds a Lazy, folded onto what the bases provide."""

    __slots__ = ("cls", "values", "where")
    word = "patch"

    def __init__(self, cls: type[Lazy[Any]], values: Mapping[str, Any], where: tuple[str, int] | None = None) -> None:
        self.cls, self.where = cls, where
        self.values = cls.__accept_all__(values, f"{self.word}({cls.__name__}, ...)", where)

    def __repr__(self) -> str:
        inner = "".join(f", {k}={v!r}" for k, v in self.values.items())
        return f"{self.word}({self.cls.__name__}{inner})"

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other)
            and self.cls is cast(Patch, other).cls
            and self.values == cast(Patch, other).values
        )

    def __hash__(self) -> int:
        return hash((type(self), self.cls, tuple(self.values)))

    def __reduce__(self) -> Any:
        from .pickling import path_of

        return _revive_patch, (self.word, path_of(self.cls), dict(self.values), self.where)

    def onto(self, base: Any, at: str) -> Any:
        """The value after this patch; `at` names the field in errors."""
        from .lazy import Lazy, replace

        if base is REQUIRED:
            return self.cls(**self.values)
        if isinstance(base, self.cls):
            return replace(base, **self.values)
        found = f"a {type(base).__name__}" if isinstance(base, Lazy) else repr(base)
        here = f" ({place(*self.where)})" if self.where else ""
        raise PatchError(
            f"{at}: {self!r}{here} does not apply: the field holds {found}; write {self.cls.__name__}(...) to replace it, "
            f"swap({self.cls.__name__}, ...) to change its type, or put a base that sets {self.cls.__name__} after this class"
        )


class Swap(Patch):
    """Change the type; keep every field that was set and that both types have."""

    __slots__ = ()
    word = "swap"

    def onto(self, base: Any, at: str) -> Any:
        from .lazy import Lazy, given

        kept: dict[str, Any] = {}
        if isinstance(base, Lazy):
            fields = self.cls.__fields__
            kept = {k: v for k, v in given(base).items() if k in fields and k not in self.values}
        return self.cls(**{**kept, **self.values})


def patch(cls: Callable[P, T], *args: P.args, **values: P.kwargs) -> T:
    """Override some fields of the Lazy that a field already holds, keeping the rest."""
    return cast(T, Patch(_lazy_class(cls, args, "patch"), values, caller(1)))


def swap(cls: Callable[P, T], *args: P.args, **values: P.kwargs) -> T:
    """Change the type of the Lazy that a field holds, keeping what both types share."""
    return cast(T, Swap(_lazy_class(cls, args, "swap"), values, caller(1)))


def _lazy_class(cls: Any, args: tuple[Any, ...], word: str) -> type[Lazy[Any]]:
    if not (isinstance(cls, type) and hasattr(cls, "__fields__")):
        raise PatchError(f"{word}() takes a Lazy class first, not {cls!r} ({place(*caller(2))})")
    if args:
        raise PatchError(
            f"{word}({cls.__name__}, ...) takes its values by name, as {word}({cls.__name__}, field=value)"
        )
    return cls


def _revive_patch(word: str, path: str, values: dict[str, Any], where: tuple[str, int] | None) -> Patch:
    from .load import load_class

    return (Swap if word == "swap" else Patch)(load_class(path), values, where)


def unknown(what: str, names: list[str], known: Any, where: str = "") -> UnknownField:
    """One error for all unknown names of one call."""
    problems = [f"{what}: no field {name!r}{suggest(name, known)}{where}" for name in names]
    return UnknownField("\n".join(problems), problems)
