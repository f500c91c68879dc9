"""A layer that keeps the inputs of its norms, activation functions and products, and makes their outputs again.

In: a layer's forward and its input. Out: its output, whose graph holds a `Recipe` (a call and its inputs) where it would
hold the result of one; it is run once in the backward, when the first asks for it, and let go after the last has. Only
results whose inputs the graph keeps anyway are made again, so that nothing is kept in exchange: no matrix product and no
attention runs twice, and every bit stays. In the way of `--recompute-swiglu --recompute-norm` of LLMQ (arXiv 2512.15306),
found from the calls a layer makes, whoever wrote it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from forgather_dsl.parallel.autocast import autocast_now
from forgather_dsl.parallel.holding import Held, Hold

__all__ = ["keep_inputs"]

SAVES_INPUTS = {"rms_norm", "layer_norm", "group_norm", "silu", "gelu", "mish", "softplus", "leaky_relu", "square"}
SAVES_FACTORS = {"mul", "multiply"}  # each where the other needs a gradient
CHEAP = {"add", "sub", "to", "float", "bfloat16", "half", "type_as"}  # keep nothing: where inputs are to be had anyway


class Recipe:
    """A call whose result can be had again. `uses`: how many places in the graph wait for it."""

    def __init__(
        self, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor
    ) -> None:
        self.function, self.args, self.kwargs = function, args, kwargs
        self.autocast = autocast_now(out.device)
        self.storage = weakref.ref(out.untyped_storage())
        self.layout = out.shape, out.stride(), out.storage_offset(), out.dtype
        self.uses = 0
        self._value: Tensor | None = None

    def take(self) -> Tensor:
        """For one of the places."""
        value, self.uses = self.value(), self.uses - 1
        if self.uses <= 0:
            self._value = None
        return value

    def value(self) -> Tensor:
        """The result; remembered while places wait for it."""
        if self._value is not None:
            return self._value
        args = [_had(value) for value in self.args]
        with torch.no_grad(), self.autocast():
            value = self.function(*args, **{name: _had(value) for name, value in self.kwargs.items()})
        if self.uses > 0:
            self._value = value
        return value


class _Kept(NamedTuple):
    """An input of a recipe that has none itself."""

    held: Held


class _View(NamedTuple):
    """Of a recipe's result, as some place in the graph wants it."""

    recipe: Recipe
    layout: tuple[Any, ...]  # shape, strides, offset


class _Noting(TorchFunctionMode):
    """Notes how tensors are made while a layer runs."""

    def __init__(self, hold: Hold) -> None:
        super().__init__()
        self.hold = hold
        self.recipes: dict[int, Recipe] = {}  # by the id of the storage

    def recipe_of(self, tensor: Tensor) -> Recipe | None:
        """How the storage of a tensor was made, if that is known."""
        storage = tensor.untyped_storage()
        found = self.recipes.get(id(storage))
        return found if found is not None and found.storage() is storage else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any call of torch in the layer."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        known = name in SAVES_INPUTS or name in SAVES_FACTORS or name in CHEAP
        if known and isinstance(out, Tensor) and out.requires_grad and torch.is_grad_enabled():
            self._note(name, func, args, kwargs, out)
        return out

    def _note(self, name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(tensor.untyped_storage() is out.untyped_storage() for tensor in tensors):
            return  # a view, or done in place
        alone = name in CHEAP or (name in SAVES_FACTORS and sum(tensor.requires_grad for tensor in tensors) < 2)
        if alone and any(
            t.requires_grad and not isinstance(t, nn.Parameter) and self._whole(t) is None for t in tensors
        ):
            return  # it would keep an input that nothing else does
        made = {key: self._ingredient(value) for key, value in kwargs.items()}
        recipe = Recipe(func, tuple(map(self._ingredient, args)), made, out)
        self.recipes[id(out.untyped_storage())] = recipe

    def _ingredient(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return self._whole(value) or (value.detach() if isinstance(value, nn.Parameter) else _Kept(self.hold(value)))

    def _whole(self, tensor: Tensor) -> Recipe | None:
        """The recipe of a tensor that is the result itself, not a view of it."""
        recipe = self.recipe_of(tensor)
        layout = tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype
        return recipe if recipe is not None and recipe.layout == layout else None


def _had(value: Any) -> Any:
    return value.value() if isinstance(value, Recipe) else value.held() if isinstance(value, _Kept) else value


def keep_inputs(run: Callable[[Tensor], Tensor], x: Tensor, hold: Hold) -> Tensor:
    """`run(x)`, whose graph keeps recipes, and through `hold` the tensors that have none."""
    noting = _Noting(hold)

    def pack(tensor: Tensor) -> _View | Held:
        recipe = noting.recipe_of(tensor)
        if recipe is None or recipe.layout[3] != tensor.dtype:
            return hold(tensor)
        recipe.uses += 1
        return _View(recipe, (tensor.shape, tensor.stride(), tensor.storage_offset()))

    with noting, saved_tensors_hooks(pack, _unpack):
        y = run(x)
    noting.recipes.clear()  # the graph holds `pack` as long as what it packed
    return y


def _unpack(packed: _View | Held) -> Tensor:
    if not isinstance(packed, _View):
        return packed()
    value = packed.recipe.take()
    shape, strides, offset = packed.layout
    return value.as_strided(shape, strides, offset)
