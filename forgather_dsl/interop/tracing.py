"""From the spec of a model to the source of one file: the builder module of the spec, traced by codegen.

Names of modules that only this process knows (the builder, experiments loaded by path) do not reach the text.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn as nn

import codegen

from ..dsl import Lazy, build
from ..dsl.load import loaded_from
from ..errors import UserError
from ..models.cache import KVCache
from ..models.init import draw_weights
from .builder import loaded, text_of

ALSO = (draw_weights, KVCache)  # first weights, and what generation needs
OURS = __name__.partition(".")[0]
EXPERIMENT = "experiment"  # what the header calls the module that builds the model


class Traced(NamedTuple):
    """The source of a model, and how to build the same from the package."""

    source: codegen.Source
    build: Callable[[], nn.Module]


def traced(model: Lazy[Any]) -> Traced:
    """The source of the model that a spec builds, not yet proven.

    Raises:
        UserError: with everything in it that has no source that stands alone. ConfigError: it does not build.
    """
    written = text_of(model)
    module = loaded(written.text)

    def on_meta() -> nn.Module:
        with torch.device("meta"):
            return module.build()

    whole = on_meta()
    with torch.device("meta"):
        wanted: Any = build(model)
    _require_same(whole, wanted)
    inline = (OURS, module.__name__, *_packages(written.targets))
    try:
        source = codegen.trace(whole, build=on_meta, also=ALSO, inline=inline)
    except codegen.CodegenError as error:
        raise UserError(_renamed(told(error), _names(module.__name__, written.targets))) from error
    return Traced(_public(source, _names(module.__name__, written.targets)), module.build)


def told(error: codegen.CodegenError) -> str:
    """The problems of a trace or a proof, for users."""
    return "this model has no source that stands alone:\n  " + str(error).replace("\n", "\n  ")


def _packages(targets: Iterable[Any]) -> list[str]:
    """Top-level packages whose source is taken in, beside our own."""
    names = dict.fromkeys(str(target.__module__).partition(".")[0] for target in targets)
    return [name for name in names if name not in ("torch", OURS) and name not in sys.stdlib_module_names]


def _names(builder: str, targets: Iterable[Any]) -> dict[str, str]:
    """Modules that only this process knows, and what a reader calls them."""
    files = {target.__module__: loaded_from(target.__module__) for target in targets}
    stems = {name: os.path.splitext(os.path.basename(file))[0] for name, file in files.items() if file is not None}
    return {f"<{builder}>": EXPERIMENT, builder: EXPERIMENT} | stems


def _renamed(text: str, names: dict[str, str]) -> str:
    for name, public in names.items():
        text = text.replace(name, public)
    return text


def _public(source: codegen.Source, names: dict[str, str]) -> codegen.Source:
    decisions = tuple(dataclasses.replace(d, file=names.get(d.file, d.file)) for d in source.decisions)
    return dataclasses.replace(source, text=_renamed(source.text, names), decisions=decisions)


def _require_same(written: nn.Module, wanted: nn.Module) -> None:
    """The functions build what the factories do. Raises UserError with the first module or value that differs."""
    ours, theirs = dict(written.named_modules()), dict(wanted.named_modules())
    for path in dict.fromkeys([*theirs, *ours]):
        a, b = (_sign(found[path]) if path in found else None for found in (ours, theirs))
        if a != b:
            raise UserError(
                f"the source of this model builds another one: {path or 'the model'} is {a}, not {b}; its constructor "
                "depends on more than its arguments"
            )


def _sign(module: nn.Module) -> tuple[Any, ...]:
    plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, type(None)))}
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    return type(module).__qualname__, plain, [(name, tuple(t.shape), t.dtype) for name, t in tensors]
