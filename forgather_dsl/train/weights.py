"""The weights of a checkpoint against a model, from headers alone: names, shapes and number formats, all problems at once.

`expected` builds a model without memory, `stored` reads what a checkpoint says it holds, `require_same` compares;
`save_weights` writes a checkpoint that has nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from ..dsl import build, check
from ..errors import UserError
from ..parallel.group import World
from .agreement import Ranks
from .checkpoint import Contents, Saved, Saver, Slice
from .checkpoint.snapshot import Source

WEIGHTS = "weights/"  # what keys of weights begin with in a checkpoint
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}  # as safetensors and as torch spell them
_MOST_NAMED = 20  # of one kind in a message


class Stored(NamedTuple):
    """What a file says of one tensor."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it
    file: str


def stored(saved: Saved) -> dict[str, Stored]:
    """The weights of a checkpoint by parameter name; of slices, the whole."""
    found: dict[str, Stored] = {}
    for name in saved.manifest["files"]:
        slices = saved.manifest.get("slices", {}).get(name, {})
        with safe_open(os.path.join(saved.path, name), framework="pt") as file:
            for key in sorted(file.keys()):
                if key.startswith(WEIGHTS):
                    part = file.get_slice(key)
                    shape = slices[key][0] if key in slices else part.get_shape()
                    found[key.removeprefix(WEIGHTS)] = Stored(tuple(shape), part.get_dtype(), name)
    return found


def read_weights(
    saved: Saved, names: Iterable[str], slices: Mapping[str, Slice] = MappingProxyType({})
) -> Iterator[tuple[str, Tensor]]:
    """(parameter name, tensor) of each, one at a time and in any order; of those in `slices` that part alone."""
    cut = {WEIGHTS + name: part for name, part in slices.items()}
    for key, tensor in saved.tensors([WEIGHTS + name for name in names], cut):
        yield key.removeprefix(WEIGHTS), tensor


def save_weights(where: str, weights: Iterable[Source]) -> str:
    """Write a checkpoint of step 0 that has weights alone into `where`, from one process; returns its path.

    Args:
        weights: by parameter name; each is read when its turn comes, and let go.
    """
    sources = [one._replace(key=WEIGHTS + one.key) for one in weights]
    state = {"weights_only": True, "tokens": 0, "seconds": 0.0, "optimizer": None, "data": None}
    return Saver(where, alone(), background=False).save(Contents(0, sources, state), wait=True)


def alone() -> Ranks:
    """One process on the CPU, where a group of ranks is asked for."""
    return Ranks(World(0, 1, torch.device("cpu"), None), [])


def expected(model: Any, most_layers: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a model's parameters, tied ones once. Raises UserError for more layers than tensors,
    ConfigError for sizes that make no model.
    """
    if model.num_layers > most_layers:
        raise UserError(f"{most_layers} tensors are stored, too few for num_layers = {model.num_layers}")
    check(model)
    with torch.device("meta"):
        built: torch.nn.Module = build(model)
    return {name: tuple(parameter.shape) for name, parameter in built.named_parameters()}


def require_same(where: str, found: Mapping[str, Stored], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raises UserError with everything that is missing, unexpected, of another shape or of an unknown format."""
    shapes = [
        f"{name} is {list(found[name].shape)}, the model has {list(shape)}"
        for name, shape in wanted.items()
        if name in found and found[name].shape != shape
    ]
    formats = [f"{name} is {entry.dtype}" for name, entry in found.items() if entry.dtype not in DTYPES]
    problems = [
        *_told("missing", [name for name in wanted if name not in found]),
        *_told("unexpected", [name for name in found if name not in wanted]),
        *_told("of another shape", shapes),
        *_told(f"of another number format than {', '.join(DTYPES)}", formats),
    ]
    if problems:
        raise UserError(f"{where} does not hold the weights of this model:\n  " + "\n  ".join(problems))


def _told(what: str, names: list[str]) -> list[str]:
    more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return [f"{len(names)} {what}: {', '.join(names[:_MOST_NAMED])}{more}"] if names else []
