"""Reading checkpoints: the newest whole one, and tensors out of it, all of them checked before the first is handed out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from safetensors import safe_open
from torch import Tensor

from ...errors import UserError
from . import folder, manifest
from .slices import Assembly, Slice, disagreement, whole
from .verify import problem


class Ranks(Protocol):
    """What checkpoints need of a process group."""

    rank: int
    world: int

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, on every rank."""
        ...


class Saved(NamedTuple):
    """A verified checkpoint."""

    path: str
    step: int
    manifest: dict[str, Any]

    def stored(self) -> dict[str, list[tuple[str, Slice]]]:
        """(file, which part of the tensor) of everything that is stored, by key. Reads the files' headers alone."""
        found: dict[str, list[tuple[str, Slice]]] = {}
        for name in self.manifest["files"]:
            slices = self.manifest["slices"].get(name, {})
            with safe_open(os.path.join(self.path, name), framework="pt") as file:
                for key in list(file.keys()):
                    size = tuple(file.get_slice(key).get_shape())
                    part = whole(size)
                    if key in slices:
                        shape, offset = slices[key]
                        part = Slice(tuple(shape), tuple(offset), size)
                    found.setdefault(key, []).append((name, part))
        return found

    def problem(self, shapes: Mapping[str, tuple[int, ...] | None], slices: Mapping[str, Slice]) -> str | None:
        """Why the wanted tensors cannot be had, or None. No tensor is read.

        Args:
            shapes: of the whole tensor, by wanted key; None: any.
            slices: of which keys only a part is wanted.
        """
        stored = self.stored()
        missing = [key for key in shapes if key not in stored]
        if missing:
            return f"{self.path} lacks {len(missing)} tensors: {', '.join(sorted(missing)[:5])}"
        for key, shape in shapes.items():
            parts = [part for _, part in stored[key]]
            needed = slices.get(key) if parts[0].shape else None
            if needed is None and shape is not None:
                needed = whole(shape)
            if (why := disagreement(key, parts, needed)) is not None:
                return f"{self.path}: {why}"
            box = needed or whole(parts[0].shape)
            if box.shape and sum(box.overlap(part) for part in parts) != box.overlap(box):
                return f"{self.path} lacks 1 tensors: {key} (parts of it are there)"
        return None

    def tensors(
        self, wanted: Iterable[str], slices: Mapping[str, Slice] = MappingProxyType({})
    ) -> Iterator[tuple[str, Tensor]]:
        """(key, tensor on CPU) for each wanted key, of those in `slices` only that part, however the tensor was stored.

        Raises UserError before the first for what is not there, or does not fit.
        """
        left = set(wanted)
        if (why := self.problem(dict.fromkeys(left), slices)) is not None:
            raise UserError(why, exit_code=4)
        stored = {key: parts for key, parts in self.stored().items() if key in left}
        begun: dict[str, Assembly] = {}
        for name in self.manifest["files"]:
            with safe_open(os.path.join(self.path, name), framework="pt") as file:
                for key in sorted(left & set(file.keys())):
                    at = dict(stored[key])[name]
                    cut = at.shape != at.size or key in slices
                    part = file.get_slice(key) if cut and at.shape else file.get_tensor(key)
                    if key not in begun:
                        begun[key] = Assembly(slices.get(key, whole(at.shape)) if at.shape else whole(()))
                    if begun[key].add(part, at):
                        left.discard(key)
                        yield key, begun.pop(key).tensor


def newest(where: str, ranks: Ranks) -> Saved | None:
    """The newest checkpoint in a folder that verifies on every rank; bad ones are set aside with one warning line each."""
    for path in ranks.gather(folder.listed(where))[0]:
        problems = [p for p in ranks.gather(problem(path)) if p]
        if not problems:
            return open_checkpoint(path)
        if ranks.rank == 0 and os.path.lexists(path):  # or a run that trains here has just deleted it
            done = "set aside" if folder.set_aside(path) else "left there, where nothing can be renamed"
            print(f"warning: {path} is damaged ({problems[0]}); {done}, using the one before", file=sys.stderr)
        ranks.gather(None)
    return None


def open_checkpoint(path: str) -> Saved:
    """A checkpoint that was verified. Raises OSError or ValueError for one whose manifest cannot be read."""
    found = manifest.read(path)
    return Saved(path, int(found["step"]), found)
