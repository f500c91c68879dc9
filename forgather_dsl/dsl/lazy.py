"""Lazy: a frozen, keyword-only attrs class that describes, and does not import, the thing it builds.

`class RMSNorm(Norm["pkg.module.RMSNorm"]): eps: float = 1e-5`. An instance keeps only what was given to it; every other
field is looked up through the MRO when it is first read (`resolve`). attrs provides `fields`, validators, converters and
`evolve`; slots stay off, because slotted classes cannot have two bases with fields.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, dataclass_transform

import attrs

from .errors import ConfigError, Frozen, UnknownField, caller, joined, place
from .fields import accept, verify_patch
from .hints import unknown
from .words import REQUIRED, Patch, Stack

T = TypeVar("T")
_EVOLVE = attrs.evolve.__code__


@dataclass_transform(kw_only_default=True, frozen_default=False, field_specifiers=(attrs.field,))
class Lazy(Generic[T]):
    """Base of everything configurable. The type argument, a string, is the static result type and the import path."""

    __fields__: ClassVar[Mapping[str, attrs.Attribute[Any]]] = {}  # in the order of first declaration
    __own__: ClassVar[Mapping[str, Any]] = {}  # what this class body says, raw
    __written__: ClassVar[Mapping[str, Any]] = {}  # annotations of this body, unevaluated
    __writers__: ClassVar[Mapping[str, Any]] = {}  # the class that wrote each field's annotation
    __names__: ClassVar[Mapping[str, Any]] = {}  # what annotations name and only the function around the class knows
    __types__: ClassVar[dict[str, Any]] = {}  # evaluated annotations
    __folds__: ClassVar[dict[Any, Any]] = {}  # see `resolve.fold`
    __target__: ClassVar[Any] = None  # import path, or the class itself
    __abstract__: ClassVar[bool] = True
    __runtime__: ClassVar[tuple[str, ...]] = ()  # what `build` adds to the fields
    __line__: ClassVar[tuple[str, int]] = ("", 0)
    __wildcard__: ClassVar[bool] = False  # stands in for its options in a Factory field (Cycle)
    __universal__: ClassVar[bool] = False  # fits every field (call)

    def __init_subclass__(cls, abstract: bool = False, runtime: tuple[str, ...] | None = None, **kw: Any) -> None:
        from .declare import declare

        super().__init_subclass__(**kw)
        frame = sys._getframe(1)
        while frame.f_code.co_name == "__init_subclass__" and frame.f_back is not None:  # a class that overrides this
            frame = frame.f_back
        declare(cls, abstract, runtime, frame)

    if not TYPE_CHECKING:  # a visible __setattr__ or __getattr__ makes type checkers accept every name

        def __init__(self, *args, **values):
            cls = type(self)
            if args:
                example = next(iter(cls.__fields__), "field")
                raise ConfigError(
                    f"{cls.__name__} takes its values by name, as {cls.__name__}({example}=...) ({place(*caller())})"
                )
            original = _evolving(sys._getframe(1))
            if original is not None:  # attrs.evolve hands over the changes alone: every field has init=False
                self.__dict__["__given__"] = given(replace(original, **values))
            else:
                self.__dict__["__given__"] = cls.__accept_all__(values, cls.__name__)

        def __setattr__(self, name, value):
            hint = f"replace(x, {name}=...)" if name in type(self).__fields__ else "a subclass that declares it"
            raise Frozen(f"{type(self).__name__}.{name}: experiments are frozen; write {hint} ({place(*caller())})")

        def __delattr__(self, name):
            raise Frozen(f"{type(self).__name__}.{name}: experiments are frozen ({place(*caller())})")

        def __getattr__(self, name):
            cls = type(self)
            if name.startswith("__"):
                raise AttributeError(name)
            if hasattr(cls, name):  # a property of the user's own raised: let its error show
                return object.__getattribute__(self, name)
            raise UnknownField(f"{cls.__name__} has no field {name!r}{unknown(cls, name)}")

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and _contents(self) == _contents(cast("Lazy[Any]", other)))

    def __hash__(self) -> int:
        return hash(type(self))  # equal values may differ in spelling (1 and 1.0), so no field takes part

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={_shown(self, k, v)!r}' for k, v in given(self).items())})"

    def _repr_html_(self) -> str:  # notebooks
        from .display import html

        return html(self)

    def __replace__(self, **values: Any) -> Any:  # copy.replace, Python 3.13
        return replace(self, **values)

    def __copy__(self) -> Any:
        return revive(type(self), given(self))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        from .resolve import copied

        return copied(self, memo)

    def __reduce__(self) -> Any:  # by path, so that spawned workers can load an experiments file
        from .pickling import reduce

        return reduce(self)

    @classmethod
    def __accept_all__(
        cls, values: Mapping[str, Any], what: str, where: tuple[str, int] | None = None
    ) -> dict[str, Any]:
        """Values checked and converted; every problem at once, with the line of the call."""
        errors: list[ConfigError] = []
        accepted: dict[str, Any] = {}
        for name, value in values.items():
            try:
                if name not in cls.__fields__:
                    raise UnknownField(f"{what}: no field {name!r}{unknown(cls, name)}")
                if isinstance(value, Patch):
                    verify_patch(cls, name, value)
                accepted[name] = value if isinstance(value, Patch) else accept(cls, name, value)
            except ConfigError as error:
                texts = [f"{problem} ({place(*(where or caller()))})" for problem in error.problems]
                errors.append(type(error)("\n".join(texts), texts))
        if errors:
            raise joined(errors)
        return accepted


def given(lazy: Lazy[Any]) -> dict[str, Any]:
    """What was said about this one object: explicit values and patches, not what its class provides."""
    if not isinstance(lazy, Lazy):
        raise ConfigError(f"expected an instance of a Lazy class, got {lazy!r}{_instance_hint(lazy)}")
    return lazy.__dict__["__given__"]


def _instance_hint(value: Any) -> str:
    return f"; write {value.__name__}()" if isinstance(value, type) and issubclass(value, Lazy) else ""


def revive(cls: type, values: Mapping[str, Any]) -> Any:
    """An instance from values that were accepted before."""
    made = object.__new__(cls)
    made.__dict__["__given__"] = dict(values)
    return made


def replace(lazy: T, /, **values: Any) -> T:
    """A copy with some fields changed. Patches stack on patches; derived fields are computed anew."""
    node = cast("Lazy[Any]", lazy)
    changed, cls = dict(given(node)), type(node)
    for name, value in cls.__accept_all__(values, f"replace({cls.__name__}, ...)").items():
        earlier = changed.get(name, REQUIRED)
        if not isinstance(value, Patch) or earlier is REQUIRED:
            changed[name] = value
        elif isinstance(earlier, Patch):
            changed[name] = Stack((*earlier.parts, *value.parts))
        else:
            changed[name] = value.onto(earlier, cls, name)
    return revive(cls, changed)


def _evolving(frame: Any) -> Lazy[Any] | None:
    """The instance that attrs.evolve copies, when it is what called (also through a subclass's own `__init__`)."""
    for _ in range(2):
        if frame is not None and frame.f_code is _EVOLVE:
            return frame.f_locals["inst"]
        frame = frame.f_back if frame is not None and frame.f_code.co_name == "__init__" else None
    return None


def _shown(lazy: Lazy[Any], name: str, said: Any) -> Any:
    """What a patched field came to; the patch itself where it does not apply."""
    try:
        return getattr(lazy, name) if isinstance(said, Patch) else said
    except ConfigError:
        return said


def _contents(lazy: Lazy[Any]) -> list[tuple[str, Any]]:
    """Every field as it resolves; REQUIRED where nothing fills it."""
    out = []
    for name in type(lazy).__fields__:
        try:
            out.append((name, getattr(lazy, name)))
        except ConfigError:
            out.append((name, REQUIRED))
    return out
