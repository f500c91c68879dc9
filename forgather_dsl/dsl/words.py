"""The words that stand in a class body: REQUIRED, derived, patch, swap.

They only record what was said; `resolve` gives them meaning. Assignment replaces, `patch` merges,
`swap` changes the type and keeps what both types share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from .errors import ConfigError, MissingValue, PatchError, article, caller, place, title

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
    said_by = "given"

    def __init__(self, cls: type[Lazy[Any]], values: Mapping[str, Any], where: tuple[str, int] | None = None) -> None:
        self.cls, self.where = cls, where
        self.values = cls.__accept_all__(values, f"{self.word}({cls.__name__}, ...)", where)

    @property
    def parts(self) -> tuple[Patch, ...]:
        """This patch alone; those of a `Stack` first to last."""
        return (self,)

    def __repr__(self) -> str:
        inner = "".join(f", {k}={v!r}" for k, v in self.values.items())
        return f"{self.word}({self.cls.__name__}{inner})"

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other) or not isinstance(other, Patch):
            return False
        return self.cls is other.cls and self.values == other.values

    def __hash__(self) -> int:
        return hash((type(self), self.cls, tuple(self.values)))

    def __reduce__(self) -> Any:
        from .pickling import packed, path_of

        return _revive_patch, (self.word, path_of(self.cls), packed(self.values), self.where)

    def carrying(self, values: Mapping[str, Any]) -> Patch:
        """The same patch with values that were accepted before."""
        return _carrying(type(self), self.cls, values, self.where)

    def onto(self, base: Any, cls: type[Lazy[Any]], name: str) -> Any:
        """The value of field `name` of `cls` after this patch. Raises PatchError when it does not apply."""
        from .lazy import Lazy, replace

        if isinstance(base, self.cls):
            return replace(base, **self.values)
        here = f" ({place(*self.where)})" if self.where else ""
        if base is REQUIRED and not self.cls.__abstract__:
            return self.cls(**self.values)
        if base is REQUIRED:
            raise PatchError(
                f"{title(cls)}.{name}: {self!r}{here} has nothing to patch: nothing fills the field, and "
                f"{self.cls.__name__} is abstract; assign a concrete {self.cls.__name__}"
            )
        found = (
            f"the field holds {article(type(base).__name__)}" if isinstance(base, Lazy) else f"the field holds {base!r}"
        )
        raise PatchError(
            f"{title(cls)}.{name}: {self!r}{here} does not apply: {found}; write {self.cls.__name__}(...) to replace it, "
            f"swap({self.cls.__name__}, ...) to change its type, or put a base that sets {self.cls.__name__} after this class"
        )


class Swap(Patch):
    """Change the type; keep every field that was set and that both types have."""

    __slots__ = ()
    word = "swap"

    def onto(self, base: Any, cls: type[Lazy[Any]], name: str) -> Any:
        from .fields import accept
        from .lazy import Lazy, given, replace, revive

        kept: dict[str, Any] = {}
        for field, value in given(base).items() if isinstance(base, Lazy) else ():
            if field not in self.cls.__fields__:
                continue
            try:
                kept[field] = value if isinstance(value, Patch) else accept(self.cls, field, value)
            except ConfigError:
                continue  # the same name for another thing: not shared
        return replace(revive(self.cls, kept), **self.values)


class Stack(Patch):
    """Several patches of one field of one instance, first to last."""

    __slots__ = ("_parts",)

    def __init__(self, parts: tuple[Patch, ...]) -> None:
        self._parts, self.cls, self.where = parts, parts[-1].cls, parts[-1].where
        self.values = {k: v for part in parts for k, v in part.values.items()}

    @property
    def parts(self) -> tuple[Patch, ...]:
        return self._parts

    def __repr__(self) -> str:
        return " + ".join(map(repr, self.parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stack) and self.parts == other.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __reduce__(self) -> Any:
        return Stack, (self.parts,)

    def onto(self, base: Any, cls: type[Lazy[Any]], name: str) -> Any:
        for part in self.parts:
            base = part.onto(base, cls, name)
        return base


def patch(cls: Callable[P, T], *args: P.args, **values: P.kwargs) -> T:
    """Override some fields of the Lazy that a field already holds, keeping the rest."""
    return cast(T, Patch(_lazy_class(cls, args, "patch"), values, caller(1)))


def swap(cls: Callable[P, T], *args: P.args, **values: P.kwargs) -> T:
    """Change the type of the Lazy that a field holds, keeping what both types share."""
    return cast(T, Swap(_lazy_class(cls, args, "swap"), values, caller(1)))


def _lazy_class(cls: Any, args: tuple[Any, ...], word: str) -> type[Lazy[Any]]:
    if not (isinstance(cls, type) and hasattr(cls, "__fields__")):
        kind = type(cls).__name__
        hint = f"; write {word}({kind}, field=value)" if hasattr(type(cls), "__fields__") else ""
        raise PatchError(f"{word}() takes a Lazy class first, not {cls!r}{hint} ({place(*caller(2))})")
    if args:
        raise PatchError(
            f"{word}({cls.__name__}, ...) takes its values by name, as {word}({cls.__name__}, field=value) "
            f"({place(*caller(2))})"
        )
    return cls


def _carrying(kind: type, cls: Any, values: Mapping[str, Any], where: tuple[str, int] | None) -> Patch:
    made = object.__new__(kind)
    made.cls, made.values, made.where = cls, dict(values), where
    return made


def _revive_patch(word: str, path: str, values: dict[str, Any], where: tuple[str, int] | None) -> Patch:
    from .pickling import class_at

    return _carrying(Swap if word == "swap" else Patch, class_at(path), values, where)
