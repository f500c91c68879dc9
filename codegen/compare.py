"""The model is what its constructor builds: classes, names, shapes, dtypes, plain attributes, and nothing patched on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch.nn as nn
from torch.nn.parameter import is_lazy

from .errors import Problem
from .record import SIMPLE, same

_HOOKS = {
    "_forward_hooks": "forward hooks",
    "_forward_pre_hooks": "forward pre-hooks",
    "_backward_hooks": "backward hooks",
    "_backward_pre_hooks": "backward pre-hooks",
    "_state_dict_hooks": "state dict hooks",
    "_load_state_dict_pre_hooks": "hooks on loading",
}
_OWN = {"training", "_is_torch_compile", "_is_full_backward_hook", "call_super_init", "_version"}


def unwrapped(model: Any) -> Any:
    """The module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif type(model).__name__ in ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel"):
            model = model.module
        else:
            return model


def differences(model: nn.Module, again: nn.Module) -> Iterator[Problem]:
    """Every way in which `model` is not what was built again."""
    if not isinstance(again, nn.Module):
        yield Problem(f"build() gives {type(again).__qualname__}, which is no module", "return the model from build")
        return
    mine, theirs = dict(model.named_modules()), dict(again.named_modules())
    for path in [*mine, *(p for p in theirs if p not in mine)]:
        yield from _module_differences(path, mine.get(path), theirs.get(path))
    if lazy := next((name for name, value in [*_held(model), *_held(again)] if is_lazy(value)), None):
        yield Problem(
            f"{lazy} has no shape before a first batch", "use the module with its sizes instead of the lazy one"
        )
        return
    state, other = _state(model), _state(again)
    if state != other:
        pair = next(((a, b) for a, b in zip(state, other) if a != b), (state[-1:], other[-1:]))
        yield Problem(
            f"the model is not what its constructor builds: it holds {_tensor(pair[0])}, a new one {_tensor(pair[1])}",
            "build it with arguments that give these weights (was it resized, cast or parametrised after construction?)",
        )


def _held(model: nn.Module) -> list[tuple[str, Any]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _state(model: nn.Module) -> list[tuple[Any, ...]]:
    """(name, shape, dtype, marks) of each tensor that the model holds; marks tell of frozen and tied ones."""
    first: dict[int, str] = {}
    found = []
    for name, value in _held(model):
        owner = first.setdefault(id(value), name)
        frozen = isinstance(value, nn.Parameter) and not value.requires_grad
        marks = [*["frozen"] * frozen, *[f"tied to {owner}"] * (owner != name)]
        found.append((name, value.shape, value.dtype, " ".join(marks)))
    return found


def _tensor(entry: Any) -> str:
    if not isinstance(entry, tuple):
        return f"{len(entry)} more tensors" if not entry else _tensor(entry[0])
    return f"{entry[0]} {list(entry[1])} {str(entry[2]).removeprefix('torch.')} {entry[3]}".rstrip()


def _module_differences(path: str, mine: nn.Module | None, theirs: nn.Module | None) -> Iterator[Problem]:
    where = path or "the root module"
    if mine is None or theirs is None or _name(mine) != _name(theirs):
        a, b = ("nothing" if m is None else _name(m) for m in (mine, theirs))
        yield Problem(
            f"the model is not what its constructor builds: {where} is {a}, in a new one {b}",
            "pass build= that makes it as it is; a part swapped or wrapped after construction has no source",
        )
        return
    for attribute, value in mine.__dict__.items():
        if attribute in _OWN:
            continue
        if attribute in _HOOKS:
            if len(value) > len(theirs.__dict__.get(attribute) or ()):
                yield Problem(
                    f"{where} ({type(mine).__qualname__}) has {_HOOKS[attribute]} that its constructor does not make",
                    "remove them before tracing, or write what they do into forward",
                )
        elif attribute.startswith("_") and attribute in nn.Module().__dict__:
            continue
        elif inspect.isroutine(value) and inspect.isroutine(getattr(type(mine), attribute, None)):
            made = theirs.__dict__.get(attribute)
            if made is None:
                yield Problem(
                    f"{where} ({type(mine).__qualname__}): {attribute} is overridden on the instance, so the source of "
                    "its class is not what runs",
                    "override it in a subclass, and build that",
                )
        elif not _equal(value, theirs.__dict__.get(attribute)):
            yield Problem(
                f"the model is not what its constructor builds: {where}.{attribute} is {value!r}, in a new one "
                f"{theirs.__dict__.get(attribute)!r}",
                "give it to the constructor, or pass build= that sets it",
            )


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, SIMPLE) or isinstance(b, SIMPLE):
        return same(a, b)
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and type(a) is type(b):
        return list(a) == list(b) and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, functools.partial) and isinstance(b, functools.partial):
        return _equal(a.func, b.func) and _equal(a.args, b.args) and _equal(a.keywords, b.keywords)
    if isinstance(a, type) or inspect.isroutine(a):
        return a is b or getattr(a, "__code__", a) is getattr(b, "__code__", b)  # a lambda is made anew each time
    return type(a).__qualname__ == type(b).__qualname__


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def patches(model: nn.Module, traced: Callable[[str], bool]) -> Iterator[Problem]:
    """Methods of traced classes that other code has put in place of those in the source."""
    seen: set[type] = set()
    for module in model.modules():
        for cls in type(module).__mro__:
            if cls in seen or not traced(cls.__module__):
                continue
            seen.add(cls)
            for name, value in vars(cls).items():
                function = inspect.unwrap(value) if inspect.isfunction(value) else None
                if function is None or function.__name__ == "<lambda>":
                    continue
                own = function.__qualname__.rpartition(".")[0] == cls.__qualname__
                if not own and function.__module__ != cls.__module__ and not function.__module__.startswith("torch"):
                    yield Problem(
                        f"{cls.__qualname__}.{name} was replaced by {function.__module__}.{function.__qualname__}",
                        "write the method in the class, or in a subclass",
                    )
