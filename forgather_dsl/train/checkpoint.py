"""Checkpoints: safetensors and one JSON manifest, committed by a rename, verified by hash before anything is loaded.

Every rank writes the tensors it owns under full parameter names, and of a slice of a tensor the manifest says where it
belongs, so a checkpoint loads into any number of stages, shards and replicas.
`checkpoints/step-00000100/` holds `rank-0.safetensors`, ... and `manifest.json`, which is written last.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError

FORMAT = 1
_FILE = re.compile(r"rank-\d+\.safetensors")
_FOLDER = re.compile(r"step-(\d{8})")


class Ranks(Protocol):
    """What a checkpoint needs of a process group."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        ...


class Slice(NamedTuple):
    """A box of a tensor that is spread over ranks. Tensors without dimensions are never sliced."""

    shape: tuple[int, ...]  # of the whole tensor
    offset: tuple[int, ...]
    size: tuple[int, ...]


class Saved(NamedTuple):
    """A verified checkpoint."""

    path: str
    step: int
    manifest: dict[str, Any]

    def stored(self) -> Iterator[str]:
        """Every key of every file."""
        for name in self.manifest["files"]:
            with safe_open(os.path.join(self.path, name), framework="pt") as file:
                yield from file.keys()

    def tensors(
        self, wanted: Iterable[str], slices: Mapping[str, Slice] = MappingProxyType({})
    ) -> Iterator[tuple[str, Tensor]]:
        """(key, tensor on CPU) for each wanted key, of those in `slices` only that part, however the tensor was stored.

        Raises UserError for what is not there.
        """
        left = set(wanted)
        begun: dict[str, _Assembly] = {}
        for name in self.manifest["files"]:
            stored = self.manifest.get("slices", {}).get(name, {})
            with safe_open(os.path.join(self.path, name), framework="pt") as file:
                for key in sorted(left & set(file.keys())):
                    shape = tuple(file.get_slice(key).get_shape())
                    part = file.get_slice(key) if key in stored or (key in slices and shape) else file.get_tensor(key)
                    whole, offset = stored.get(key, (shape, [0] * len(shape)))
                    if key not in begun:
                        box = Slice(tuple(whole), (0,) * len(shape), tuple(whole))
                        begun[key] = _Assembly(slices.get(key, box) if shape else box)
                    if begun[key].add(part, tuple(whole), offset, shape):
                        left.discard(key)
                        yield key, begun.pop(key).tensor
        if left:
            raise UserError(f"{self.path} lacks {len(left)} tensors: {', '.join(sorted(left)[:5])}", exit_code=4)


class _Assembly:
    """A tensor, or the slice of one that is wanted, put together from stored slices."""

    def __init__(self, wanted: Slice) -> None:
        self.wanted, self.missing = wanted, math.prod(wanted.size)
        self.tensor: Any = None

    def add(self, part: Any, whole: tuple[int, ...], offset: Sequence[int], size: tuple[int, ...]) -> bool:
        """Take what the stored slice has of it; whether that was all. `part` reads from the file what is indexed."""
        if whole != self.wanted.shape:
            raise UserError(f"a tensor of shape {whole} is stored where {self.wanted.shape} is needed", exit_code=4)
        starts = [max(a, b) for a, b in zip(offset, self.wanted.offset)]
        stops = [min(a + n, b + m) for a, n, b, m in zip(offset, size, *self.wanted[1:])]
        if any(stop <= start for start, stop in zip(starts, stops)):
            return not self.missing
        found = part[tuple(slice(i - o, j - o) for i, j, o in zip(starts, stops, offset))]
        self.missing -= found.numel()
        if self.tensor is None and not self.missing:
            self.tensor = found
        else:
            if self.tensor is None:
                self.tensor = found.new_empty(self.wanted.size)
            self.tensor[tuple(slice(i - o, j - o) for i, j, o in zip(starts, stops, self.wanted.offset))] = found
        return not self.missing


def save(
    folder: str,
    step: int,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    scalars: dict[str, Any],
    ranks: Ranks,
    keep: int,
    slices: Mapping[str, Slice] = MappingProxyType({}),
) -> str:
    """Write one checkpoint from all ranks and return its path.

    Args:
        tensors: this rank's, by key; a rank that has none writes no file.
        state: the same on every rank (loader position, tokens, elapsed seconds), JSON-able.
        scalars: this rank's optimizer scalars, by parameter name.
        keep: how many of the newest stay.
        slices: where those of this rank's tensors belong that are a part of a larger one.
    """
    final = os.path.join(folder, f"step-{step:08d}")
    partial = os.path.join(folder, f".step-{step:08d}.partial")
    if ranks.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
    ranks.gather(None)  # the directory is there
    name = f"rank-{ranks.rank}.safetensors"
    error = None
    try:
        mine = None
        if tensors:
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, os.path.join(partial, name))
            _sync(os.path.join(partial, name))
            mine = {"file": name, "sha256": _hash(os.path.join(partial, name)), "scalars": scalars}
            mine["slices"] = {key: slices[key][:2] for key, tensor in tensors.items() if key in slices and tensor.ndim}
    except OSError as failure:
        error, mine = str(failure), None
    everyone = ranks.gather((mine, error))
    failed = [f"rank {i}: {text}" for i, (_, text) in enumerate(everyone) if text]
    if failed:
        raise UserError(f"checkpoint of step {step} was not written ({'; '.join(failed)})", exit_code=4)
    if ranks.rank == 0:
        _commit(partial, final, step, state, [part for part, _ in everyone if part])
        _prune(folder, keep)
    ranks.gather(None)  # it is committed before anyone goes on
    return final


def _commit(partial: str, final: str, step: int, state: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    manifest = {
        "format": FORMAT,
        "step": step,
        "state": state,
        "files": {part["file"]: part["sha256"] for part in parts},
        "slices": {part["file"]: part["slices"] for part in parts if part["slices"]},
        "scalars": {name: value for part in parts for name, value in part["scalars"].items()},
    }
    path = os.path.join(partial, "manifest.json")
    with open(path, "w", encoding="utf-8") as file:
        json.dump(manifest, file)
    _sync(path)
    if os.path.exists(final):  # the same step again, after a resume
        shutil.rmtree(final)
    os.rename(partial, final)
    _sync(os.path.dirname(final))


def _prune(folder: str, keep: int) -> None:
    for path in list(_listed(folder))[keep:]:
        shutil.rmtree(path)


def _listed(folder: str) -> list[str]:
    """Committed checkpoints, newest first."""
    names = [n for n in os.listdir(folder) if _FOLDER.fullmatch(n)] if os.path.isdir(folder) else []
    return [os.path.join(folder, name) for name in sorted(names, reverse=True)]


def newest(folder: str, ranks: Ranks) -> Saved | None:
    """The newest checkpoint that verifies on every rank; bad ones are set aside with one warning line."""
    for path in _listed(folder):
        problems = [p for p in ranks.gather(problem(path)) if p]
        if not problems:
            return open_checkpoint(path)
        if ranks.rank == 0:
            os.rename(path, path + ".bad")
            print(f"warning: {path} is damaged ({problems[0]}); set aside, using the one before", file=sys.stderr)
        ranks.gather(None)
    return None


def problem(path: str) -> str | None:
    """Why a checkpoint cannot be used, or None: its manifest, and the hash of every file."""
    try:
        manifest = open_checkpoint(path).manifest
        for name, digest in manifest["files"].items():
            if not _FILE.fullmatch(name):
                return f"the manifest names a file {name!r}"
            if os.path.islink(os.path.join(path, name)):
                return f"{name} is a link, not a file of its own"
            if _hash(os.path.join(path, name)) != digest:
                return f"{name} does not match its hash"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def open_checkpoint(path: str) -> Saved:
    """Read the manifest of a checkpoint that was verified."""
    with open(os.path.join(path, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    if manifest["format"] != FORMAT:
        raise ValueError(f"format {manifest['format']}, this version reads {FORMAT}")
    return Saved(path, int(manifest["step"]), manifest)


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
