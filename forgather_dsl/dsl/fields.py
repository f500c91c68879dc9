"""What one field takes: its annotation evaluated, a value converted, type-checked and validated.

Validators that look at other fields of the instance are asked again, with the instance, by `check` and `build`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from .annotations import Unresolved, describe, evaluate, fits, lazy_classes, settled
from .errors import ConfigError, PatchError, title
from .hints import advice, got
from .words import REQUIRED, Patch

if TYPE_CHECKING:
    from .lazy import Lazy


def annotation_of(cls: type[Lazy[Any]], name: str) -> Any:
    """A field's annotation, evaluated where the class that wrote it stands."""
    cache = cls.__types__
    if name not in cache:
        writer = cls.__writers__[name]
        names = {**writer.__names__, writer.__name__: writer}
        result = evaluate(writer.__written__.get(name, Any), writer.__module__, names)
        if isinstance(result, Unresolved):
            return result  # not cached: the name may exist once the module is complete
        cache[name] = result
    return cache[name]


def accept(cls: type[Lazy[Any]], name: str, value: Any) -> Any:
    """A value for a field: converted, type-checked, validated. Raises ConfigError."""
    if value is REQUIRED:
        return value
    value = settled(converted(cls, name, value), annotation_of(cls, name))
    verify(cls, name, value)
    return value


def converted(cls: type[Lazy[Any]], name: str, value: Any) -> Any:
    """The value after the field's converter, if it has one."""
    attribute = cls.__fields__[name]
    converter = cast(Any, attribute.converter)
    if converter is None:
        return value
    try:
        if hasattr(converter, "takes_field"):  # attrs.Converter, which may ask for more than the value
            more = [None] * converter.takes_self + [attribute] * converter.takes_field
            return converter.converter(value, *more)
        return converter(value)
    except ConfigError:
        raise
    except Exception as error:  # a user's converter
        raise ConfigError(f"{title(cls)}.{name} = {value!r}: {_text(error)}") from error


def verify(cls: type[Lazy[Any]], name: str, value: Any, instance: Any = None) -> None:
    """Raise ConfigError when a value has the wrong type or its field's validator refuses it."""
    if hasattr(type(value), "__is_slot__"):  # `Base.seq_len` instead of `Base().seq_len`
        raise ConfigError(
            f"{title(cls)}.{name}: got {value!r}; take the value from an instance, or from self in a @derived method"
        )
    annotation = annotation_of(cls, name)
    if not fits(value, annotation):
        text = f"expected {describe(annotation)}, got {got(value)}{advice(value, annotation)}"
        raise ConfigError(f"{title(cls)}.{name}: {text}")
    attribute = cls.__fields__[name]
    if attribute.validator is None or value is REQUIRED:
        return
    try:
        cast(Any, attribute.validator)(instance, attribute, value)
    except ConfigError:
        raise
    except AttributeError:
        if instance is not None:
            raise
        # the validator looks at other fields: `check` and `build` ask it again with the whole instance
    except Exception as error:  # a user's validator
        raise ConfigError(f"{title(cls)}.{name} = {value!r}: {_text(error)}") from error


def verify_patch(cls: type[Lazy[Any]], name: str, patch: Patch) -> None:
    """Raise PatchError when no value that the field can hold is one that the patch changes."""
    annotation = annotation_of(cls, name)
    kinds = list(lazy_classes(annotation))
    related = any(issubclass(patch.cls, kind) or issubclass(kind, patch.cls) for kind in kinds)
    if kinds and not related and not patch.cls.__universal__:
        raise PatchError(f"{title(cls)}.{name}: expected a patch of {describe(annotation)}, got {patch!r}")
    if annotation in (int, float, str, bool):
        raise PatchError(f"{title(cls)}.{name}: expected {describe(annotation)}, got {patch!r}; write a plain value")


def _text(error: Exception) -> str:
    """What an exception says; attrs' own validators carry more than their message."""
    return str(error.args[0]) if error.args else type(error).__name__
