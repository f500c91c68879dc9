"""What the backward of a stage owes its weights: gradients computed at once, or queued and computed later by the same calls.

In: what a layer saved in its forward and the gradient of its output. Out: `.grad`. During a full backward (B) a gradient goes
straight there; during a backward for inputs (I) it waits for W, so that the bits do not depend on the schedule.
"""

from __future__ import annotations

import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
import torch.nn as nn

__all__ = ["Owed", "WeightGradients", "accumulate_bias", "accumulate_weight", "gradient_of"]


class Watcher(Protocol):
    """Told of each linear layer that is about to multiply."""

    def meets(self, x: torch.Tensor) -> bool:
        """Whether anybody needs the product; `x` is what the layer has saved for its backward. May end the forward."""
        ...


SMALL = 2**18
"""Elements of a weight (1 MiB) up to which a CPU makes the product first and then adds it: a GEMM that adds to a gradient which is not in
the caches waits for it, and a product this small still is when it is added (benchmarks/LOG.md)."""

Owed = deque[tuple[Callable[..., None], tuple[Any, ...]]]
"""Weight gradients not yet computed: calls and their arguments (activations and output gradients)."""


class WeightGradients:
    """What the backward of one stage owes its weights, and its weights in the dtype of autocast."""

    def __init__(self) -> None:
        self.deferring = False
        self.owed: Owed = deque()
        self.watcher: Watcher | None = None
        self.add_rows: Callable[..., None] = _accumulate_embedding
        """What adds the rows of an embedding's gradient: (weight, ids, rows)."""
        self._casts: dict[torch.Tensor, torch.Tensor] | None = None
        self.last_scaled: tuple[Any, int, Any] = (lambda: None, 0, None)  # input, its version, its scale (float8)
        self._last_input: tuple[Any, int, Any] = (lambda: None, 0, lambda: None)  # input, its version, its cast

    def add(
        self, accumulate: Callable[..., None], parameter: torch.Tensor, x: torch.Tensor, *others: torch.Tensor
    ) -> None:
        """Run `accumulate(parameter, x, *others)` now, or queue it while `deferring`; `x` was saved in the forward."""
        if self.deferring:
            # detached: an activation's graph ends in the stage's input, which would stay alive with it
            self.owed.append((accumulate, (parameter, x.detach(), *others)))
        else:
            accumulate(parameter, x, *others)

    def take(self) -> Owed:
        """Hand over what one backward has queued; for `settle`."""
        owed, self.owed = self.owed, deque()
        return owed

    @staticmethod
    @torch.no_grad()  # as in a backward: else `.grad` would join a graph and keep what it was added from alive
    def settle(owed: Owed, done: Callable[[nn.Parameter], None] | None = None) -> None:
        """Compute queued weight gradients into `.grad`, letting go of each one's tensors as soon as it is done.

        The latest first, as its tensors may still be in the cache; in the order of the backward where a parameter occurs
        twice, for the bits of its sum. `done` is called with each parameter that is owed nothing more.
        """
        if len({id(arguments[0]) for _, arguments in owed}) == len(owed):
            owed.reverse()
        if done is None:
            _settle_quietly(owed)
        else:
            _settle_telling(owed, done)

    @contextmanager
    def step(self) -> Iterator[None]:
        """While weights do not change: cast each to the dtype of autocast once, not once per microbatch."""
        self.deferring, self.owed, self._casts = False, deque(), {}
        try:
            yield
        finally:
            self._casts = None

    @contextmanager
    def watched_by(self, watcher: Watcher | None) -> Iterator[None]:
        """Linear layers tell this `watcher`."""
        before, self.watcher = self.watcher, watcher
        try:
            yield
        finally:
            self.watcher = before

    def cast(self, parameter: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`parameter` in `dtype`, outside the graph; itself when it has that dtype."""
        return parameter if parameter.dtype == dtype else self.once(parameter, lambda weight: weight.to(dtype))

    def once(self, parameter: torch.Tensor, make: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """What `make` makes of a parameter, once while weights do not change; each has one such thing."""
        if self._casts is None:
            return make(parameter.detach())
        if parameter not in self._casts:
            self._casts[parameter] = make(parameter.detach())
        return self._casts[parameter]

    def cast_input(self, x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`x` in `dtype`, outside the graph; the layers that share an input in turn (q, k, v) keep one copy of it."""
        if x.dtype == dtype:
            return x
        last, version, cast = self._last_input
        found = cast() if last() is x and version == x._version else None
        if found is None or found.dtype != dtype:
            found = x.detach().to(dtype)
            self._last_input = (weakref.ref(x), x._version, weakref.ref(found))
        return found


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    """`.grad`, zero at first: adding the first microbatch to zero is the same call as adding the others."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
    return parameter.grad


def accumulate_weight(weight: torch.Tensor, x: torch.Tensor, grad_output: torch.Tensor) -> None:
    """`weight.grad [out, in] += grad_output^T x`, under no_grad. With autocast the product is bf16, the sum fp32."""
    gradient, left, right, at_once = _product(weight, x, grad_output)
    if at_once:
        gradient.addmm_(left, right)  # no temporary, no second pass
    else:
        gradient.add_(left @ right)


def _product(
    weight: torch.Tensor, x: torch.Tensor, grad_output: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """`.grad`, the factors `[out, tokens]` and `[tokens, in]` of what is added to it, and whether in one call."""
    gradient, x = gradient_of(weight), _rows(x)
    at_once = gradient.dtype == x.dtype and not (gradient.is_cpu and gradient.numel() <= SMALL)
    return gradient, _rows(grad_output).t(), x, at_once


def _settle_quietly(owed: Owed) -> None:
    """Products next to each other are all made ready before the first: it drives the code that does so out of the caches."""
    while owed:
        products = []
        while owed and owed[0][0] is accumulate_weight:
            products.append(_product(*owed.popleft()[1]))
        products.reverse()
        while products:  # as `accumulate_weight`, without a call
            gradient, left, right, at_once = products.pop()
            if at_once:
                gradient.addmm_(left, right)
            else:
                gradient.add_(left @ right)
        gradient = left = right = None
        if owed:
            accumulate, arguments = owed.popleft()
            accumulate(*arguments)
            del arguments


def _settle_telling(owed: Owed, done: Callable[[nn.Parameter], None]) -> None:
    """One after the other, as whoever is told may let go of a gradient before the next is made."""
    left = Counter(id(arguments[0]) for _, arguments in owed)
    while owed:
        accumulate, arguments = owed.popleft()
        accumulate(*arguments)
        parameter = arguments[0]
        del arguments
        left[id(parameter)] -= 1
        if not left[id(parameter)]:
            done(parameter)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """`[..., features]` as `[tokens, features]`."""
    return x.reshape(-1, x.shape[-1])


def accumulate_bias(bias: torch.Tensor, grad_output: torch.Tensor) -> None:
    """`bias.grad [out] +=` the sum of grad_output [..., out] over all but the last."""
    gradient_of(bias).add_(_rows(grad_output).sum(0, dtype=bias.dtype))


def _accumulate_embedding(weight: torch.Tensor, ids: torch.Tensor, grad_output: torch.Tensor) -> None:
    """Rows are added one by one; on CUDA their order is fixed only by torch.use_deterministic_algorithms(True)."""
    gradient = gradient_of(weight)
    gradient.index_add_(0, ids.flatten(), grad_output.flatten(0, -2).to(gradient.dtype))
