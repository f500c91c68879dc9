"""Text and JSON into typed values, by cattrs with strict hooks: `"false"` is not True, 3.7 is not an int, `1e-4` is a float.

Used leaf by leaf against a field's annotation, and for whole experiments (`serialize`). cattrs is imported on first use.
"""

from __future__ import annotations

import ast
import functools
import json
import types
import typing
from typing import Annotated, Any

from .annotations import Unresolved, describe, lazy_class
from .errors import ConfigError, suggest
from .lazy import Lazy

_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


def structure(value: Any, annotation: Any, at: str) -> Any:
    """`value` as the annotation demands. Raises ConfigError with `at`, the value and what was expected."""
    if isinstance(annotation, Unresolved):
        raise ConfigError(
            f"{at}: its annotation {annotation.text!r} cannot be evaluated here ({annotation.reason}); it is probably imported "
            "under TYPE_CHECKING only, so the field cannot be set from text"
        )
    try:
        return converter().structure(value, annotation)
    except ConfigError as error:
        raise ConfigError(f"{at}: {error}") from None
    except Exception as error:  # cattrs raises what the hooks and the constructors raise
        raise ConfigError(f"{at} = {value!r}: expected {describe(annotation)}{_reason(error)}") from None


def _reason(error: Exception) -> str:
    inner = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
    return f" ({inner})" if isinstance(inner, ValueError) and str(inner) else ""


@functools.cache
def converter() -> Any:
    """The one converter; hooks decide by the exact type first."""
    import cattrs

    made = cattrs.Converter(forbid_extra_keys=True)
    for kind, hook in ((bool, _bool), (int, _int), (float, _float), (str, _str)):
        made.register_structure_hook(kind, hook)
    made.register_structure_hook_func(lambda t: t is Any or isinstance(t, typing.TypeVar), lambda v, _: _guess(v))
    made.register_structure_hook_func(lambda t: typing.get_origin(t) is typing.Literal, _literal)
    made.register_structure_hook_func(lambda t: typing.get_origin(t) is tuple or t is tuple, _tuple)
    made.register_structure_hook_func(_is_union, _union)
    made.register_structure_hook_func(lambda t: typing.get_origin(t) is Annotated, lambda v, t: _annotated(v, t))
    made.register_structure_hook_func(_is_lazy, _lazy)
    return made


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_lazy(annotation: Any) -> bool:
    return not _is_union(annotation) and lazy_class(annotation) is not None


def _bool(value: Any, _: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in _WORDS:
        return _WORDS[value.lower()]
    raise ValueError("write true or false")


def _int(value: Any, _: Any) -> int:
    if isinstance(value, bool):
        raise ValueError("write a number")
    if isinstance(value, str):
        try:
            return int(value.replace("_", ""), 0)
        except ValueError:
            value = _number(value)
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError("not a whole number")
        return int(value)
    if isinstance(value, int):
        return value
    raise ValueError("write a whole number")


def _float(value: Any, _: Any) -> float:
    if isinstance(value, str):
        return _number(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise ValueError("write a number")


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        raise ValueError("write a number") from None


def _str(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("write a string")
    return value


def _guess(value: Any) -> Any:
    """Where anything is allowed, JSON if it parses, else the text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        return value


def _literal(value: Any, annotation: Any) -> Any:
    options = typing.get_args(annotation)
    for option in options:
        if (value == option and isinstance(value, type(option))) or (isinstance(value, str) and value == str(option)):
            return option
    raise ValueError(f"one of {', '.join(map(repr, options))}{suggest(str(value), [], '')}")


def _tuple(value: Any, annotation: Any) -> tuple[Any, ...]:
    args = typing.get_args(annotation) or (Any, ...)
    if isinstance(value, str):
        value = _items(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError("write a list: a,b or [a, b]")
    kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else list(args)
    if len(kinds) != len(value):
        raise ValueError(f"{len(kinds)} items, not {len(value)}")
    return tuple(converter().structure(item, kind) for item, kind in zip(value, kinds))


def _items(text: str) -> Any:
    stripped = text.strip()
    if stripped[:1] in ("[", "("):
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError):
            raise ValueError("write a list: a,b or [a, b]") from None
    return [item.strip() for item in stripped.split(",") if item.strip()]


def _union(value: Any, annotation: Any) -> Any:
    options = typing.get_args(annotation)
    if type(None) in options and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    last: Exception | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return converter().structure(value, option)
        except Exception as error:  # the next option may take it
            last = error
    assert last is not None
    raise last


def _annotated(value: Any, annotation: Any) -> Any:
    return converter().structure(value, typing.get_args(annotation)[0])


def _lazy(value: Any, annotation: Any) -> Any:
    """A Lazy from its class name, `module:Class`, a mapping with `$type`, or itself."""
    from .load import load_class
    from .serialize import from_dict

    wanted = lazy_class(annotation)
    assert wanted is not None
    if isinstance(value, Lazy):
        made = value
    elif isinstance(value, typing.Mapping):
        made = from_dict(value)
    elif isinstance(value, str) and (":" in value or value.endswith(".py")):
        made = load_class(value)()
    elif isinstance(value, str):
        known = named_subclasses(wanted)
        if value not in known:
            raise ConfigError(f"no {wanted.__name__} called {value!r}{suggest(value, known, 'there are')}")
        made = known[value]()
    else:
        raise ValueError(f"write the name of a {wanted.__name__}, as --set x=Name")
    if not isinstance(made, wanted) and not type(made).__universal__:
        raise ConfigError(f"{type(made).__name__} is not a {wanted.__name__}")
    return made


def named_subclasses(cls: type) -> dict[str, type]:
    """Concrete classes below (and including) `cls` by name; of two with one name, the one defined last."""
    out: dict[str, type] = {} if cls.__dict__.get("__abstract__", False) else {cls.__name__: cls}
    for below in cls.__subclasses__():
        out.update(named_subclasses(below))
    return out
