"""Values that models return, as a flat series of paths and tensors; and whether two such values are the same, bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

Leaf = Tensor | str  # what is no tensor is compared by how it is written
_WRITTEN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def leaves(value: Any) -> Iterator[tuple[str, Leaf]]:
    """(path, leaf) of a value, tensors as copies without a graph."""
    yield from ((path, snapshot(leaf) if isinstance(leaf, Tensor) else leaf) for path, leaf in walk(value))


def walk(value: Any, path: str = "", above: tuple[int, ...] = ()) -> Iterator[tuple[str, Leaf]]:
    """(path, leaf) of nested sequences, mappings, dataclasses and plain objects; tensors as they are.

    Names of classes are left out: an emitted class may have another name.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif value is None or isinstance(value, _WRITTEN):
        yield path, repr(value)
    elif id(value) in above:
        yield path, "<what holds it>"
    else:
        parts = list(_parts(value))
        yield path, f"<{len(parts)} parts>"
        for step, part in parts:
            yield from walk(part, path + step, (*above, id(value)))


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        yield from ((f".{name}", getattr(value, name)) for name in value._fields)  # type: ignore[attr-defined]
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{index}]", part) for index, part in enumerate(value))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{field.name}", getattr(value, field.name)) for field in dataclasses.fields(value))
    elif not isinstance(value, (type, torch.nn.Module)) and not callable(value):
        yield from ((f".{name}", part) for name, part in getattr(value, "__dict__", {}).items())


def snapshot(tensor: Tensor) -> Tensor:
    """A copy on the CPU that later changes in place do not reach; sparse and quantised ones as dense numbers."""
    tensor = tensor.detach()
    if tensor.is_nested:
        tensor = tensor.to_padded_tensor(0.0)
    elif tensor.is_quantized:
        tensor = tensor.dequantize()
    elif tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.resolve_conj().resolve_neg())


def difference(expected: Leaf, found: Leaf) -> str | None:
    """How two leaves differ, in words; None when they are the same in number format, shape and every bit."""
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        return _of_tensors(expected, found)
    if isinstance(expected, str) and isinstance(found, str):
        return None if expected == found else _of_text(expected, found)
    return f"{_short(expected)}, emitted {_short(found)}"


def _short(leaf: Leaf) -> str:
    return f"a tensor of shape {list(leaf.shape)}" if isinstance(leaf, Tensor) else leaf.replace("\n", " ")[:100]


def _of_tensors(expected: Tensor, found: Tensor) -> str | None:
    for what, one, other in (
        ("shape", list(expected.shape), list(found.shape)),
        ("dtype", expected.dtype, found.dtype),
    ):
        if one != other:
            return f"{what} {one}, emitted {other}"
    unequal = _bits(expected) != _bits(found)
    count = int(unequal.any(dim=-1).sum())
    if not count:
        return None
    first = int(unequal.any(dim=-1).nonzero()[0])
    wide = torch.complex128 if expected.is_complex() else torch.float64
    one, other = expected.reshape(-1).to(wide), found.reshape(-1).to(wide)
    most = float((one - other).abs().nan_to_num(nan=float("inf")).max())
    return (
        f"{count} of {expected.numel()} values, by at most {most:.3g}; "
        f"first at {_place(first, expected.shape)}: {one[first].item()!r}, emitted {other[first].item()!r}"
    )


def _place(index: int, shape: torch.Size) -> list[int]:
    """The indices of a value by its number in reading order."""
    found: list[int] = []
    for size in reversed(shape):
        index, at = divmod(index, size)
        found.insert(0, at)
    return found


def _bits(tensor: Tensor) -> Tensor:
    """[values, bytes of each]: NaN equals itself, and 0.0 is not -0.0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).view(tensor.numel(), tensor.element_size())


def _of_text(expected: str, found: str) -> str:
    one, other = expected.split("\n"), found.split("\n")
    if len(one) == len(other) == 1:
        return f"{expected[:200] or 'none'}, emitted {found[:200] or 'none'}"
    missing, more = [line for line in one if line not in other], [line for line in other if line not in one]
    if not missing and not more:
        return "the same in another order: " + next(f"{a}, emitted {b}" for a, b in zip(one, other) if a != b)
    told = [f"{word}: {_several(lines)}" for word, lines in (("missing", missing), ("only emitted", more)) if lines]
    return "; ".join(told)


def _several(lines: list[str], most: int = 4) -> str:
    return ", ".join(lines[:most]) + (f" and {len(lines) - most} more" if len(lines) > most else "")
