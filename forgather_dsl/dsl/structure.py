"""Text and JSON into typed values, by cattrs with strict hooks: `"false"` is not True, 3.7 is not an int, `1e-4` is a float.

Used leaf by leaf against a field's annotation. Text (`--set`) is parsed; data (JSON) has types of its own and is only
checked, and never names code. cattrs is imported on first use.
"""

from __future__ import annotations

import ast
import functools
import json
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from .annotations import Unresolved, describe, is_union, lazy_class
from .errors import ConfigError, Untrusted, article, suggest
from .hints import named_subclasses
from .lazy import Lazy

_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False, "1": True, "0": False}


def structure(value: Any, annotation: Any, at: str, *, text: bool = True) -> Any:
    """`value` as the annotation demands. Raises ConfigError with `at`, the value and what was expected.

    Args:
        text: strings are what a person typed, and are parsed. False for data that was typed when it was written.
    """
    if isinstance(annotation, Unresolved):
        raise ConfigError(
            f"{at}: its annotation {annotation.text!r} cannot be evaluated here ({annotation.reason}); it is probably imported "
            "under TYPE_CHECKING only: import it, or set the field in a class"
        )
    try:
        return structurer(text).structure(value, annotation)
    except ConfigError as error:
        texts = [f"{at}: {problem}" for problem in error.problems]
        raise type(error)("\n".join(texts), texts) from None
    except Exception as error:  # cattrs raises what the hooks and the constructors raise
        shown = repr(value) if len(repr(value)) < 100 else repr(value)[:100] + "..."
        raise ConfigError(f"{at} = {shown}: expected {describe(annotation)}{_reason(error)}") from None


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if type(error).__name__ == "StructureHandlerNotFoundError":
        return ", which cannot be written as text; set the field in a class"
    return f" ({error})" if isinstance(error, ValueError) and str(error) else ""


@functools.cache
def structurer(text: bool) -> Structurer:
    """The one for text and the one for data."""
    return Structurer(text)


class Structurer:
    """A cattrs converter whose hooks decide by the exact type first."""

    def __init__(self, text: bool) -> None:
        import cattrs

        self.text, self.converter = text, cattrs.Converter(forbid_extra_keys=True)
        self.structure = self.converter.structure
        kinds: Any = ((bool, self._bool), (int, self._int), (float, self._float), (str, self._str))
        for kind, hook in kinds:
            self.converter.register_structure_hook(kind, hook)
        hooks: Any = (
            (lambda t: typing.get_origin(t) in (dict, Mapping), self._mapping),
            (lambda t: t is Any or isinstance(t, typing.TypeVar), self._anything),
            (lambda t: typing.get_origin(t) is typing.Literal, self._literal),
            (lambda t: typing.get_origin(t) is tuple or t is tuple, self._tuple),
            (is_union, self._union),
            (lambda t: typing.get_origin(t) is Annotated, lambda v, t: self.structure(v, typing.get_args(t)[0])),
            (lambda t: not is_union(t) and lazy_class(t) is not None, self._lazy),
        )
        for applies, hook in hooks:
            self.converter.register_structure_hook_func(applies, hook)

    def _words(self, value: Any) -> bool:
        return self.text and isinstance(value, str)

    def _bool(self, value: Any, _: Any) -> Any:
        if isinstance(value, bool):
            return value
        if self._words(value) and value.strip().lower() in _WORDS:
            return _WORDS[value.strip().lower()]
        raise ValueError("write true or false")

    def _int(self, value: Any, _: Any) -> Any:
        if self._words(value):
            try:
                return int(value.replace("_", ""), 0)
            except ValueError:
                value = _number(value)
        if isinstance(value, float) and not value.is_integer():
            raise ValueError("not a whole number")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value)
        raise ValueError("write a whole number")

    def _float(self, value: Any, _: Any) -> Any:
        if self._words(value):
            return _number(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        raise ValueError("write a number")

    def _str(self, value: Any, _: Any) -> Any:
        if not isinstance(value, str):
            raise ValueError("write a string")
        return value

    def _anything(self, value: Any, _: Any) -> Any:
        """Where anything is allowed, text that parses as JSON is JSON."""
        if not self._words(value):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value

    def _literal(self, value: Any, annotation: Any) -> Any:
        options = typing.get_args(annotation)
        for option in options:
            if (value == option and type(value) is type(option)) or (self._words(value) and value == str(option)):
                return option
        near = suggest(value, map(str, options), "options") if isinstance(value, str) else ""
        raise ConfigError(f"{value!r} is not one of {', '.join(map(repr, options))}{near if 'did you' in near else ''}")

    def _tuple(self, value: Any, annotation: Any) -> Any:
        args = typing.get_args(annotation) or (Any, ...)
        if self._words(value):
            value = _items(value)
        if not isinstance(value, (list, tuple)):
            raise ValueError("write a list: a,b or [a, b]")
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else list(args)
        if len(kinds) != len(value):
            raise ValueError(f"{len(kinds)} items, not {len(value)}")
        return tuple(self.structure(item, kind) for item, kind in zip(value, kinds))

    def _mapping(self, value: Any, annotation: Any) -> Any:
        if self._words(value):
            value = self._anything(value, Any)
        if not isinstance(value, Mapping):
            raise ValueError('write a JSON object: {"name": value}')
        key, item = typing.get_args(annotation)
        return {self.structure(k, key): self.structure(v, item) for k, v in value.items()}

    def _union(self, value: Any, annotation: Any) -> Any:
        options = [option for option in typing.get_args(annotation) if option is not type(None)]
        optional = len(options) < len(typing.get_args(annotation))
        if optional and (value is None or (self._words(value) and value.strip().lower() in ("none", "null"))):
            return None
        errors: list[Exception] = []
        for option in options:
            try:
                return self.structure(value, option)
            except Exception as error:  # the next option may take it
                errors.append(error)
        raise next((error for error in errors if isinstance(error, ConfigError)), errors[-1])

    def _lazy(self, value: Any, annotation: Any) -> Any:
        """A Lazy from its class name, `module:Class`, a mapping with `$type`, or itself."""
        from .load import load_class
        from .serialize import from_dict

        wanted: Any = lazy_class(annotation)
        if isinstance(value, Lazy):
            made = value
        elif isinstance(value, Mapping):
            made = from_dict(value)
        elif not isinstance(value, str):
            raise ValueError(f"write the name of {article(wanted.__name__)}")
        elif not self.text:
            raise Untrusted(
                f"{value!r} stands where {article(wanted.__name__)} is expected; data holds an object with $type"
            )
        elif ":" in value or value.endswith(".py"):
            made = _instance(load_class(value), wanted)
        else:
            known = named_subclasses(wanted)
            value = value.strip().removesuffix("()")
            if "(" in value:
                raise ConfigError(
                    f"{value!r}: write the name alone, {value.partition('(')[0]}, and set its fields as paths below"
                )
            if value not in known:
                raise ConfigError(f"no {wanted.__name__} called {value!r}{suggest(value, known, 'there are')}")
            made = known[value]()
        if not isinstance(made, wanted) and not type(made).__universal__:
            raise ConfigError(f"{type(made).__name__} is not {article(wanted.__name__)}")
        return made


def _number(text: str) -> float:
    try:
        return float(text.replace("_", ""))
    except ValueError:
        raise ValueError("write a number") from None


def _items(text: str) -> Any:
    stripped = text.strip()
    if stripped[:1] in ("[", "("):
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise ValueError("write a list: a,b or [a, b]") from None
    return [item.strip() for item in stripped.split(",") if item.strip()]


def _instance(cls: type, wanted: type) -> Any:
    if not issubclass(cls, Lazy):
        raise ConfigError(f"{cls.__name__} is not {article(wanted.__name__)}; write a Lazy class that builds it")
    return cls()
