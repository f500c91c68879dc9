"""A layer that keeps its input and runs again in the backward, once, for what its graph asks for.

In: a layer's forward and its input. Out: its output, whose graph holds places (`_Place`) where it would hold tensors. The
first one asked for in the backward runs the layer again and fills them all; that run ends where the last one is known,
before a linear layer at the end is multiplied. With `keep_attention` the output and log-sum-exp of fused attention stay,
and the second run takes them as they are. Every bit is that of a layer that keeps everything (Chen et al., arXiv
1604.06174; as torch.utils.checkpoint without reentry, which leaves out operations only by watching every one of them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from forgather_dsl.parallel.autocast import autocast_now
from forgather_dsl.parallel.holding import Held, Hold
from forgather_dsl.parallel.weight_gradients import WeightGradients

__all__ = ["Replay"]


class _Enough(Exception):
    """The second run has come to the last tensor that was asked for."""


class _Place(NamedTuple):
    """Of a tensor in a layer's graph, by the order in which they were saved."""

    replay: Replay
    number: int


class _Input(NamedTuple):
    """Of a query, key or value in the graph of fused attention."""

    replay: Replay
    call: _Attention
    number: int


class _Attention:
    """One call of fused attention: its output until the second run takes it, and then its inputs."""

    def __init__(self) -> None:
        self.out: Held | None = None
        self.needs_grad = False
        self.inputs: dict[int, Tensor] = {}


class Replay:
    """One run of one layer, `run(x)`; call `forward` once. `hold` says where what is kept waits for the backward."""

    def __init__(
        self, run: Callable[[Tensor], Tensor], x: Tensor, gradients: WeightGradients, hold: Hold, keep_attention: bool
    ) -> None:
        self._run, self._gradients, self._hold, self._keeps = run, gradients, hold, keep_attention
        self._x, self._needs_grad = hold(x), x.requires_grad
        self._autocast = autocast_now(x.device)
        self._places = 0  # tensors that the graph saved
        self._linears = 0  # linear layers met in a run
        self._mark: tuple[int, Any] | None = (
            None  # the last of them and the storage of its input, until a tensor is saved
        )
        self._last_linear: int | None = None  # which of them saved the last tensor, if one did
        self._calls: list[_Attention] = []
        self._attended = 0  # of them in the second run
        self._found: dict[int, Tensor] | None = None  # by the second run, and not yet taken
        self._again = False

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output for the input that this was made with."""
        with self._watched(), saved_tensors_hooks(self._pack, _take):
            y = self._run(x)
        self._mark = None
        return y

    def meets(self, x: Tensor) -> bool:
        """A linear layer has saved its input `x` and is about to multiply: the second run may end here."""
        self._linears += 1
        if not self._again:
            self._mark = self._linears, x.untyped_storage()
        elif self._linears == self._last_linear and self._attended == len(self._calls):
            self._keep(self._places - 1, x)
            raise _Enough
        return True

    def take(self, index: int) -> Tensor:
        """A tensor that the graph saved; each is to be had once, and again for another run."""
        if self._found is None or index not in self._found:
            self._run_again()
            assert self._found is not None
        return self._found.pop(index)

    def take_input(self, call: _Attention, index: int) -> Tensor:
        """A query, key or value."""
        if index not in call.inputs:
            self._run_again()
        return call.inputs.pop(index)

    def attend(self, function: Callable[..., Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Fused attention: computed the first time, known the second."""
        inputs = [*args[:3], *(kwargs[name] for name in ("query", "key", "value") if name in kwargs)]
        return (
            self._known(function, inputs, args, kwargs) if self._again else self._kept(function, inputs, args, kwargs)
        )

    def _kept(self, function: Any, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        call = _Attention()

        def pack(tensor: Tensor) -> Any:
            for index, given in enumerate(inputs):
                if _same(tensor, given):
                    return _Input(self, call, index)
            return self._hold(tensor)

        with saved_tensors_hooks(pack, _bring):
            out = function(*args, **kwargs)
        inputs.clear()  # the graph holds `pack` as long as what it packed
        call.out, call.needs_grad = self._hold(out), out.requires_grad
        self._calls.append(call)
        return out

    def _known(self, function: Any, inputs: list[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        call, self._attended = self._calls[self._attended], self._attended + 1
        call.inputs = {index: tensor.detach() for index, tensor in enumerate(inputs)}
        if call.out is None:  # a backward that goes over the graph twice
            with saved_tensors_hooks(lambda tensor: None, _never):
                return function(*args, **kwargs)
        out, call.out = call.out(), None
        return out.detach().requires_grad_(call.needs_grad)

    def _pack(self, tensor: Tensor) -> _Place:
        mark, self._mark = self._mark, None
        self._last_linear = mark[0] if mark is not None and mark[1] is tensor.untyped_storage() else None
        self._places += 1
        return _Place(self, self._places - 1)

    def _keep(self, index: int, tensor: Tensor) -> None:
        assert self._found is not None
        self._found[index] = tensor.detach()

    def _run_again(self) -> None:
        self._found, self._linears, self._attended, saved = {}, 0, 0, 0
        x = self._x().detach().requires_grad_(self._needs_grad)

        def pack(tensor: Tensor) -> None:
            nonlocal saved
            self._keep(saved, tensor)
            saved += 1
            if saved == self._places and self._attended == len(self._calls):
                raise _Enough

        self._again = True
        try:
            with torch.enable_grad(), self._autocast(), self._watched(), saved_tensors_hooks(pack, _never):
                self._run(x)
        except _Enough:
            pass
        finally:
            self._again = False
        if len(self._found) != self._places:
            raise RuntimeError(
                f"a layer saved {self._places} tensors for its backward, and {saved} when it ran again: its forward must do "
                "the same whenever it has the same input; else write recompute = NoRecompute()"
            )

    @contextmanager
    def _watched(self) -> Iterator[None]:
        with self._gradients.watched_by(self), _Attending(self) if self._keeps else nullcontext():
            yield


class _Attending(TorchFunctionMode):
    """Shows a replay the calls of fused attention; those that drop weights at random draw the same numbers only by running."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Any call of torch in the layer."""
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") != "scaled_dot_product_attention" or not torch.is_grad_enabled():
            return func(*args, **kwargs)
        dropout = args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)
        return func(*args, **kwargs) if dropout else self.replay.attend(func, args, kwargs)


def _take(place: _Place) -> Tensor:
    return place.replay.take(place.number)


def _bring(packed: Any) -> Tensor:
    return packed.replay.take_input(packed.call, packed.number) if isinstance(packed, _Input) else packed()


def _never(packed: Any) -> Tensor:
    raise AssertionError("nothing goes backward through the second run of a layer")


def _same(a: Tensor, b: Tensor) -> bool:
    where = [(t.shape, t.stride(), t.storage_offset(), t.dtype) for t in (a, b)]
    return a.untyped_storage() is b.untyped_storage() and where[0] == where[1]
