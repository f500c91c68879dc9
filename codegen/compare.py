"""The model is what its constructor builds: classes, names, shapes, dtypes, plain attributes, and nothing patched on."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
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
_OF_EVERY = frozenset(nn.Module().__dict__)
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
    registered = {id(x) for x in (*mine.values(), *model.parameters(), *model.buffers())}
    for path in [*mine, *(p for p in theirs if p not in mine)]:
        yield from _module_differences(path, mine.get(path), theirs.get(path), registered)
    if lazy := next((name for m in (model, again) for name, value in m.named_parameters() if is_lazy(value)), None):
        yield Problem(
            f"{lazy} has no shape before a first batch", "use the module with its sizes instead of the lazy one"
        )
        return
    yield from _tensor_differences(model, again)
    state, other = _shapes(model), _shapes(again)
    if state != other:
        pair = next(((a, b) for a, b in zip(state, other) if a != b), (state[-1:], other[-1:]))
        yield Problem(
            f"the model is not what its constructor builds: it holds {_tensor(pair[0])}, a new one {_tensor(pair[1])}",
            "build it with arguments that give these weights (was it resized, cast or parametrised after construction?)",
        )


def _shapes(model: nn.Module) -> list[tuple[str, Any, Any]]:
    return [(k, v.shape, v.dtype) for k, v in model.state_dict().items() if isinstance(v, torch.Tensor)]


def _tensor_differences(model: nn.Module, again: nn.Module) -> Iterator[Problem]:
    """Flags, hooks and sharing of weights, and what the state dict holds beside tensors."""
    mine, theirs = (dict(m.named_parameters(remove_duplicate=False)) for m in (model, again))
    for name, weight in mine.items():
        other = theirs.get(name)
        if other is not None and weight.requires_grad != other.requires_grad:
            yield Problem(
                f"{name} has requires_grad={weight.requires_grad}, in a new model {other.requires_grad}: it was frozen or "
                "released after construction",
                "do it in the constructor, or undo it before tracing",
            )
        if weight._backward_hooks or getattr(weight, "_post_accumulate_grad_hooks", None):
            yield Problem(f"{name} has hooks on its gradient, which have no source", "remove them before tracing")
    if _sharing(mine) != _sharing(theirs):
        a, b = _sharing(mine), _sharing(theirs)
        names = sorted(set(map(str, a ^ b)))[0]
        yield Problem(
            f"these weights are tied in one of the model and a new one, and not in the other: {names}",
            "tie them in the constructor",
        )
    state, buffers = model.state_dict(), dict(again.named_buffers())
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            yield Problem(f"the state dict holds {name}, which is no tensor (extra_state)", "keep it in a buffer")
    for name, buffer in model.named_buffers():
        fresh = buffers.get(name)
        if name not in state and fresh is not None and not _tensors_equal(buffer, fresh):
            yield Problem(
                f"the buffer {name} is not in the state dict and differs from that of a new model, so it would be lost",
                "make it persistent, or compute it from the arguments alone",
            )


def _sharing(weights: dict[str, Any]) -> set[tuple[str, ...]]:
    groups: dict[int, list[str]] = {}
    for name, weight in weights.items():
        groups.setdefault(id(weight), []).append(name)
    return {tuple(g) for g in groups.values() if len(g) > 1}


def _tensors_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_meta or b.is_meta:
        return a.shape == b.shape and a.dtype == b.dtype
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b = a.detach().cpu(), b.detach().cpu()
    return bool(torch.equal(a, b) or (a.is_floating_point() and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)))


def _tensor(entry: Any) -> str:
    if not isinstance(entry, tuple):
        return f"{len(entry)} more tensors" if not entry else _tensor(entry[0])
    return f"{entry[0]} {list(entry[1])} {str(entry[2]).removeprefix('torch.')}"


def _module_differences(
    path: str, mine: nn.Module | None, theirs: nn.Module | None, registered: set[int]
) -> Iterator[Problem]:
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
        elif attribute.startswith("_") and attribute in _OF_EVERY:
            continue
        elif inspect.isroutine(value) and inspect.isroutine(getattr(type(mine), attribute, None)):
            made = theirs.__dict__.get(attribute)
            if made is None:
                yield Problem(
                    f"{where} ({type(mine).__qualname__}): {attribute} is overridden on the instance, so the source of "
                    "its class is not what runs",
                    "override it in a subclass, and build that",
                )
        elif isinstance(getattr(type(mine), attribute, None), functools.cached_property):
            continue
        elif (found := _loose_tensor(value, theirs.__dict__.get(attribute), registered)) is not None:
            yield Problem(
                f"{where}.{attribute} holds a tensor that is no parameter and no buffer, and it differs in a new model{found}",
                "register it, so that its values are saved as weights",
            )
        elif not _equal(value, theirs.__dict__.get(attribute)):
            yield Problem(
                f"the model is not what its constructor builds: {where}.{attribute} is {value!r}, in a new one "
                f"{theirs.__dict__.get(attribute)!r}",
                "give it to the constructor, or pass build= that sets it",
            )


def _loose_tensor(mine: Any, theirs: Any, registered: set[int]) -> str | None:
    """ "" where a tensor outside of the state dict differs, None where there is none that does."""
    if id(mine) in registered:
        return None
    if isinstance(mine, torch.Tensor):
        return None if isinstance(theirs, torch.Tensor) and _tensors_equal(mine, theirs) else ""
    if isinstance(mine, nn.Module):
        for name, weight in mine.state_dict().items():
            other = theirs.state_dict().get(name) if isinstance(theirs, nn.Module) else None
            if isinstance(weight, torch.Tensor) and not (
                isinstance(other, torch.Tensor) and _tensors_equal(weight, other)
            ):
                return ""
        return None
    if isinstance(mine, (list, tuple)):
        others = theirs if isinstance(theirs, (list, tuple)) and len(theirs) == len(mine) else [None] * len(mine)
        found = [_loose_tensor(a, b, registered) for a, b in zip(mine, others)]
    elif isinstance(mine, dict):
        held = theirs if isinstance(theirs, dict) else {}
        found = [_loose_tensor(v, held.get(k), registered) for k, v in mine.items()]
    else:
        return None
    return next((f for f in found if f is not None), None)


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
