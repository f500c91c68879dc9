"""The engine of all optimizers here: one parameter at a time, some rows at a time, in fp32 whatever the weights are kept in.

In: groups of named parameters with gradients. Out: the parameters after one update, and by name what has to be saved. An
optimizer gives each group a rule (`rule`): what the update is, and which numbers it keeps for every weight. No fp32 copy of
more rows than `chunk_bytes` hold exists at any time, so that an embedding needs no more than a layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from .groups import Keeping
from .noise import Noise
from .weights import Nearest, Weights, as_matrix, weights_of

__all__ = ["CHUNK_BYTES", "HOST_CHUNK_BYTES", "Engine", "Rule", "Target"]

CHUNK_BYTES = 1 << 25  # of fp32: enough for a GPU's full rate
HOST_CHUNK_BYTES = 1 << 20  # and what a processor's caches hold a few of


class Target:
    """A parameter that is being updated for the `step`-th time, seen as rows."""

    def __init__(self, name: str, parameter: Tensor, weights: Weights, state: dict[str, Any]) -> None:
        self.name, self.parameter, self.weights, self.state = name, parameter, weights, state
        self.step, self.lr, self.decay = 0, 0.0, 0.0
        self.seed = self.first_row = 0
        self.chunk_bytes: int | None = None
        self.most_chunks: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        matrix = as_matrix(self.parameter.detach())
        return matrix.shape[0], matrix.shape[1]

    def chunks(self) -> Iterator[slice]:
        """Rows, as many at a time as a chunk holds; a power of two of them."""
        rows, columns = self.shape
        limit = self.chunk_bytes or (HOST_CHUNK_BYTES if self.parameter.device.type == "cpu" else CHUNK_BYTES)
        count = 1 << (max(1, limit // (4 * columns)).bit_length() - 1)
        starts = range(0, rows, count)[: self.most_chunks]
        yield from (slice(start, min(rows, start + count)) for start in starts)

    def gradient(self, rows: slice) -> Tensor:
        """fp32 [rows, columns]; not to be changed, it may be the gradient itself."""
        gradient = self.parameter.grad
        assert gradient is not None
        return as_matrix(gradient.detach())[rows].float()

    def read(self, rows: slice) -> Tensor:
        """Weights, fp32 [rows, columns], to be changed and handed to `write`."""
        return self.weights.read(rows)

    def write(self, rows: slice, master: Tensor) -> None:
        """Keep the changed weights; `master` is used up."""
        self.weights.write(rows, master, self.noise, self.numbered(rows))

    @property
    def noise(self) -> Noise:
        """This update's random bits."""
        return Noise(self.seed, self.step, self.name)

    def numbered(self, rows: slice) -> range:
        """Rows as they are numbered in the tensor that the parameter may be a part of."""
        return range(self.first_row + rows.start, self.first_row + rows.stop)


class Rule(Protocol):
    """What an update is."""

    def update(self, target: Target) -> None:
        """One update. `target.step` counts from 1; what is not yet in `target.state` is made."""
        ...


class Engine:
    """An optimizer.

    Args:
        params: groups as `parameter_groups` makes them.
        lr, weight_decay: of groups that do not say otherwise.
    """

    chunk_bytes: int | None = None
    """Of fp32, that are processed at a time; None: by device."""
    most_chunks: int | None = None
    """Of fake tensors, of which later chunks take what the first take; None: all."""

    def __init__(self, params: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        self.param_groups: list[dict[str, Any]] = []
        self._targets: dict[str, tuple[Target, dict[str, Any]]] = {}
        for group in params:
            names, parameters = zip(*group["params"])
            own = {"lr": lr, "weight_decay": weight_decay, **group, "params": [*parameters], "param_names": [*names]}
            self.param_groups.append(own)
            keeping: Keeping = own.pop("keeping", Keeping())
            own["rule"] = self.rule(own)
            for name, parameter in zip(names, parameters):
                state: dict[str, Any] = {}
                target = Target(name, parameter, weights_of(parameter, state, keeping.rounding), state)
                target.seed, target.first_row = keeping.seed, keeping.first_rows.get(name, 0)
                self._targets[name] = target, own

    def rule(self, group: dict[str, Any]) -> Rule:
        """How the parameters of a group are updated; may set the group's `lr`."""
        raise NotImplementedError

    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        for name, (target, _) in self._targets.items():
            if target.parameter.grad is not None:
                self.step_one(name)

    @torch.no_grad()
    def step_one(self, name: str) -> None:
        """One update of the parameter `name`, which has its gradient; the others stay."""
        target, group = self._targets[name]
        target.step = int(target.state["step"]) + 1 if "step" in target.state else 1
        target.lr, target.decay = group["lr"], group["weight_decay"]
        target.chunk_bytes, target.most_chunks = self.chunk_bytes, self.most_chunks
        group["rule"].update(target)
        target.state["step"] = torch.tensor(float(target.step))  # on the host, as torch's optimizers have it

    def named_states(self) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
        """(name, parameter, its state) for every parameter; the state is the one in use, empty before the first step."""
        for name, (target, _) in self._targets.items():
            yield name, target.parameter, target.state

    @property
    def extra_bytes(self) -> int:
        """Of what exact masters keep beside the parameters and the state."""
        return sum(target.weights.extra_bytes for target, _ in self._targets.values())

    def masters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 master) of every parameter that has an exact one: a new tensor each."""
        for name in self._targets:
            master = self.master(name)
            if master is not None:
                yield name, master

    def has_master(self, name: str) -> bool:
        """Whether the parameter is the rounded form of an exact fp32 master."""
        return name in self._targets and self._targets[name][0].weights.extra_bytes > 0

    def master(self, name: str, device: torch.device | None = None) -> Tensor | None:
        """The exact fp32 master of a parameter, made on `device` (its own if None); None where there is none."""
        return self._targets[name][0].weights.master(device) if name in self._targets else None

    @torch.no_grad()
    def set_master(self, name: str, master: Tensor) -> None:
        """Give a parameter a value of any format, of which as much is kept as its weights can."""
        self._targets[name][0].weights.take(master)

    def watch(self) -> None:
        """Measure from here on how much of the updates is lost where weights are rounded to nearest; see `moved`."""
        for weights in self._rounded():
            weights.moved = torch.zeros(3, device=weights.parameter.device)

    def moved(self) -> tuple[float, float, float, float] | None:
        """Of all parameters since `watch`: weights, those that moved, the sum of |update|, and of it what was applied. The
        measuring ends. None where nothing is rounded to nearest."""
        counts = [(w.parameter.numel(), *w.moved.tolist()) for w in self._rounded() if w.moved is not None]
        for weights in self._rounded():
            weights.moved = None
        total, moved, wanted, applied = (sum(column) for column in zip(*counts)) if counts else (0.0, 0.0, 0.0, 0.0)
        return (total, moved, wanted, applied) if counts else None

    def _rounded(self) -> Iterator[Nearest]:
        for target, _ in self._targets.values():
            if isinstance(target.weights, Nearest):
                yield target.weights
