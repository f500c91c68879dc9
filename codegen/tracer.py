"""`trace`: from a live module to the text of a file that needs torch alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch.nn as nn

from . import compare, recover
from .closure import Closure, find_writers, gather
from .drift import drifted
from .errors import CodegenError, Problem
from .facts import Options, World
from .header import emitted_header
from .keys import Marks, Unit
from .layout import written_out
from .record import Record, watch
from .resolve import Modules, Unresolved
from .source import Source


def trace(
    model: nn.Module,
    build: Callable[[], nn.Module] | None = None,
    *,
    name: str | None = None,
    also: Sequence[Callable[..., Any]] = (),
    inline: Sequence[str] = (),
    allow: Sequence[str] = (),
    keep: Sequence[str] = (),
    dynamic: Sequence[str] = ("training", "gradient_checkpointing"),
    opaque: Sequence[Any] = (),
) -> Source:
    """The source of `model` as one file, for this configuration alone.

    `build` makes an equal model; without it the constructor's arguments are read off the instance. Code of `inline`
    modules is taken in, that of `allow` stays an import; the longest prefix decides. Methods and attributes in `keep`
    stay, those in `dynamic` are never taken for constants; `opaque` modules and classes are copied whole.
    Raises `CodegenError` with all that stands in the way.
    """
    model = compare.unwrapped(model)
    modules = Modules(inline or _packages(model, also), allow)
    problems = [*compare.patches(model, modules.traced), *_outsiders(model, modules)]
    record = _watched(build or rebuilder(model), modules)
    problems += compare.differences(model, record.model)
    if not isinstance(record.model, type(model)) or (record.root() is None and not _bare(type(model))):
        reason = f"how build() makes a {type(model).__qualname__} was not seen"
        hint = "make it anew on every call, and give the class an __init__ of its own"
        raise CodegenError(problems or [Problem(reason, hint)])
    world = World(modules, Marks(), record, Options(tuple(keep), ("training", *dynamic), tuple(opaque)))
    gather(world, record.model)
    find_writers(world)
    closure = Closure(world, record.model, also, build)
    problems += _walked(closure, bool(problems))
    if problems:
        raise CodegenError(list(dict.fromkeys(problems)))
    return _source(closure, model, name)


def _bare(cls: type) -> bool:
    """Whether a class is made without arguments, because no traced class has a constructor."""
    return cls.__init__ is nn.Module.__init__


def _watched(build: Callable[[], nn.Module], modules: Modules) -> Record:
    """The facts of one more construction."""
    try:
        return watch(build, modules.traced)
    except CodegenError:
        raise
    except Exception as error:
        reason = f"the model cannot be built again: {type(error).__name__}: {error}"
        raise CodegenError([Problem(reason, "pass a build= that makes it from nothing")]) from error


def _walked(closure: Closure, doubtful: bool) -> list[Problem]:
    """What stands in the way in the sources. Of a `doubtful` model, only what is no consequence of the doubts."""
    found: list[Problem] = []
    try:
        closure.run()
    except Unresolved as error:
        found.append(Problem(str(error), error.hint))
    except CodegenError as error:
        if doubtful and any("bug in codegen" in p.reason for p in error.problems):
            return found
        if error.__cause__ is not None:
            raise
        found += error.problems
    return found + [p for m in closure.world.modules.texts() if (p := drifted(m))] + closure.flags()


def _source(closure: Closure, model: nn.Module, name: str | None) -> Source:
    world = closure.world
    tied = _tied(model)
    root_module = world.modules.read(type(model).__module__)
    text, names = written_out(closure, emitted_header(root_module.text), tied, name)
    try:
        compile(text, "model.py", "exec", dont_inherit=True)
    except SyntaxError as error:
        line = text.split("\n")[(error.lineno or 1) - 1]
        raise CodegenError(
            [Problem(f"this is a bug in codegen: the text does not compile: {error}", "report it", text=line)]
        ) from error
    root = names[Unit(type(model).__module__, type(model).__qualname__)]
    also = {f.__name__: world.marks.fill(t, names) for f, t in zip(closure.also, closure.also_texts)}
    decisions = tuple(sorted(world.log.decisions, key=lambda d: (d.file, d.line, d.expression)))
    return Source(
        text, root, also=also, decisions=decisions, requirements=tuple(sorted(world.modules.required)), tied=tied
    )


def _packages(model: nn.Module, also: Iterable[Callable[..., Any]]) -> tuple[str, ...]:
    """The top-level packages of the code in question, without torch and the standard library."""
    homes = {c.__module__ for m in model.modules() for c in type(m).__mro__} | {f.__module__ for f in also}
    tops = {h.partition(".")[0] for h in homes}
    return tuple(sorted(t for t in tops if t != "torch" and (t not in sys.stdlib_module_names or t == "__main__")))


def _outsiders(model: nn.Module, modules: Modules) -> Iterable[Problem]:
    """Submodules of packages that are neither traced nor allowed."""
    seen: set[type] = set()
    for path, module in model.named_modules():
        cls = type(module)
        if cls in seen or modules.traced(cls.__module__):
            continue
        seen.add(cls)
        try:
            modules.outside(cls.__module__)
        except Unresolved as error:
            yield Problem(f"{path or 'the model'} is a {cls.__module__}.{cls.__qualname__}: {error}", error.hint)


def rebuilder(model: nn.Module) -> Callable[[], nn.Module]:
    """A builder from the arguments that the instance still tells. Raises CodegenError when it does not tell them."""
    try:
        arguments = recover.recover(model)
    except recover.NotRecovered as error:
        raise CodegenError(
            [Problem(f"how the model was built cannot be told from it: {error}", "pass build=")]
        ) from None
    cls = type(model)

    def build() -> nn.Module:
        try:
            return cls(**arguments)
        except Exception as error:
            reason = f"the model cannot be built again from its attributes: {type(error).__name__}: {error}"
            raise CodegenError([Problem(reason, "pass build=")]) from error

    return build


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of the state dict that share the tensor of a name before them."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    held = dict(tensors)
    for name in model.state_dict():
        if name not in held:
            continue
        if id(held[name]) in first:
            tied[name] = first[id(held[name])]
        else:
            first[id(held[name])] = name
    return tied
