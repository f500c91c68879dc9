"""One class of specs/ as a section: what it is, what it fits, its fields with type, default, bounds and unit."""

from __future__ import annotations

import ast
import functools
import inspect
import io
import tokenize
import typing
from types import ModuleType
from typing import Any

import attrs

from forgather_dsl import specs
from forgather_dsl.dsl import Lazy
from forgather_dsl.dsl.fields import annotation_of

MOST = 2**40  # an upper bound above it is there to keep 64 bits from overflowing, and tells nobody anything


def spec_classes(module: ModuleType) -> list[type]:
    """The public Lazy classes that a module defines, in the order of the file."""
    found = [value for name, value in vars(module).items() if name in specs.__all__ and isinstance(value, type)]
    own = [cls for cls in found if issubclass(cls, Lazy) and cls.__module__ == module.__name__]
    return sorted(own, key=lambda cls: cls.__line__[1])


def spec_section(cls: Any) -> str:
    """Markdown of one class."""
    doc = inspect.cleandoc(str(cls.__doc__))
    parts = [f"## {cls.__name__}\n\n{doc}\n\n"]
    kinds = [
        base
        for base in cls.__mro__[1:]
        if issubclass(base, Lazy) and base is not Lazy and base.__name__ in specs.__all__
    ]
    facts = []
    if cls.__abstract__ and not getattr(cls, "__root__", False):
        facts.append(
            "A kind, not to be used itself: `" + _variants(cls) + "`." if _variants(cls) else "A kind: subclass it."
        )
    if kinds:
        facts.append(f"Fits wherever a {_linked(kinds[0])} is asked for.")
    if cls.__runtime__:
        facts.append("Built with " + ", ".join(f"`{name}`" for name in cls.__runtime__) + " besides.")
    if facts:
        parts.append(" ".join(facts) + "\n\n")
    own = [name for name in cls.__fields__ if name in cls.__own__]
    if own:
        parts.append(
            "| field | type | default | |\n|---|---|---|---|\n" + "".join(_row(cls, name) for name in own) + "\n"
        )
    below = [name for name in cls.__fields__ if name not in cls.__own__]
    if below:
        parts.append("Inherited: " + ", ".join(_inherited(cls, name) for name in below) + ".\n\n")
    return "".join(parts).rstrip() + "\n"


def _variants(cls: type) -> str:
    named = [getattr(specs, name) for name in specs.__all__]
    below = [other for other in named if isinstance(other, type) and issubclass(other, cls) and not other.__abstract__]  # type: ignore[attr-defined]
    return "`, `".join(other.__name__ for other in sorted(below, key=lambda other: other.__name__))


def _linked(cls: type) -> str:
    page = cls.__module__.rpartition(".")[2]
    return f"[`{cls.__name__}`]({page}.md#{cls.__name__.lower()})"


def _inherited(cls: Any, name: str) -> str:
    owner = next(base for base in cls.__mro__ if name in base.__dict__.get("__own__", ()))
    return f"`{name}`" if owner.__name__ not in specs.__all__ else f"`{name}` of {_linked(owner)}"


def _row(cls: Any, name: str) -> str:
    attribute = cls.__fields__[name]
    notes = [text for text in (_comment(cls, name), bounds(attribute.validator)) if text]
    cells = (f"`{name}`", f"`{_type(cls, name)}`", _default(attribute.default), "; ".join(notes))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _type(cls: Any, name: str) -> str:
    """As it is written, an alias of words spelled out."""
    said = annotation_of(cls, name)
    if typing.get_origin(said) is typing.Literal:
        return " | ".join(repr(word) for word in typing.get_args(said))
    written = cls.__writers__[name].__written__.get(name)
    text = written if isinstance(written, str) else getattr(written, "__name__", str(written))
    return text


def _default(value: Any) -> str:
    if value is attrs.NOTHING:
        return "*required*"
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        doc = inspect.getdoc(value.factory)
        return "*derived*" + (f": {doc.split(chr(10) * 2)[0].rstrip('.')}" if doc else "")
    return f"`{value!r}`"


def bounds(validator: Any) -> str:
    """What a validator of attrs allows, in words; empty when it says nothing that can be read."""
    if validator is None:
        return ""
    if hasattr(validator, "member_validator"):
        inner = bounds(validator.member_validator)
        return f"each {inner}" if inner else ""
    if hasattr(validator, "_validators"):
        return " and ".join(text for text in map(bounds, validator._validators) if text)
    if (
        isinstance(getattr(validator, "validator", None), (object,))
        and type(validator).__name__ == "_OptionalValidator"
    ):
        return bounds(validator.validator)
    if type(validator).__name__ == "_NumberValidator":
        huge = validator.compare_op in ("<", "<=") and validator.bound > MOST
        return "" if huge else f"{validator.compare_op} {validator.bound:,}"
    return ""


def _comment(cls: Any, name: str) -> str:
    """What is said beside the field in its class body: at the end of its last line or of its first."""
    for base in cls.__mro__:
        if name in base.__dict__.get("__own__", ()):
            return _comments(base).get(name, "")
    return ""


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    module = inspect.getmodule(cls)
    assert module is not None
    text = inspect.getsource(module)
    body = next(
        node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ClassDef) and node.name == cls.__name__
    )
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    by_line = {token.start[0]: token.string for token in tokens if token.type == tokenize.COMMENT}
    found = {}
    for node in body.body:
        targets = (
            [node.target] if isinstance(node, ast.AnnAssign) else node.targets if isinstance(node, ast.Assign) else []
        )
        lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
        said = " ".join(by_line[line].lstrip("# ") for line in lines if line in by_line)
        for target in targets:
            if isinstance(target, ast.Name) and said and not said.startswith(("noqa", "type:")):
                found[target.id] = said.rstrip(",")
    return found
