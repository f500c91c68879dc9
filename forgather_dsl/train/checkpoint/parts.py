"""How ranks write one checkpoint together without talking: through small files in the folder that is being written.

In: what this rank saves. Each rank writes its tensors and then `rank-N.json` (file, size, hash, or what went wrong); rank 0
waits for all of these, writes the manifest last and commits; the others wait until the folder has its name, or is gone.
So it runs in a thread beside training, whose collectives it does not disturb.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from . import folder, manifest
from .retention import Keep, prune
from .slices import Slice
from .snapshot import Snapshot, Source
from .writing import write

POLL_SECONDS = 0.02
STALLED_SECONDS = 600.0  # nothing in the folder grows, and parts are missing: their ranks are gone


class Contents(NamedTuple):
    """What a rank saves."""

    step: int
    sources: list[Source]
    """This rank's tensors; a rank that has none writes none."""
    state: dict[str, Any] = {}  # noqa: RUF012  the same on every rank, JSON-able
    scalars: dict[str, Any] = {}  # noqa: RUF012  this rank's optimizer numbers, by parameter
    rng: dict[str, Any] = {}  # noqa: RUF012  this rank's random state, JSON-able
    slices: Mapping[str, Slice] = MappingProxyType({})
    """Where those of this rank's tensors belong that are a part of a larger one."""
    eval_loss: float | None = None  # nats, where this step was evaluated


class Place(NamedTuple):
    """Where a checkpoint is written, and by whom."""

    partial: str
    final: str
    rank: int
    world: int
    keep: Keep


class Failed(Exception):
    """The checkpoint was not written; the text says why."""


def write_part(place: Place, contents: Contents, snapshot: Snapshot) -> None:
    """Write this rank's tensors, then its part, which says what went wrong where something did."""
    name = f"rank-{place.rank}.safetensors"
    path = os.path.join(place.partial, name)
    part: dict[str, Any] = {"file": None, "scalars": contents.scalars, "rng": contents.rng}
    try:
        if contents.sources:
            part |= {"file": name, **write(path, snapshot)}
            part["slices"] = {
                one.key: contents.slices[one.key][:2]
                for one in contents.sources
                if one.key in contents.slices and one.shape
            }
        _put(place, json.dumps(part))
    except Exception as error:  # whatever it is: all ranks have to know
        with contextlib.suppress(OSError):
            os.unlink(path)  # makes room for saying so
        with contextlib.suppress(OSError):  # the folder is gone: nobody waits for this part any more
            _put(place, json.dumps({"error": f"rank {place.rank}: {said(error)}"}))


def said(error: Exception) -> str:
    """An error in words."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return f"{type(error).__name__}: {error}"


def finish(place: Place, contents: Contents) -> None:
    """On rank 0: wait for all parts and commit. On others: wait until that is done.

    Raises Failed, on rank 0 alone.
    """
    if place.rank:
        _wait(place, lambda: not os.path.isdir(place.partial))
        return
    try:
        _commit(place, contents, _collect(place))
    except Exception as error:
        with contextlib.suppress(OSError):
            folder.discard(place.partial)
        raise Failed(str(error) if isinstance(error, Failed) else said(error)) from error
    with contextlib.suppress(OSError):  # the checkpoint is there all the same
        prune(os.path.dirname(place.final), place.keep, contents.step)


def _collect(place: Place) -> list[dict[str, Any]]:
    files = [_part(place, rank) for rank in range(place.world)]
    if not _wait(place, lambda: all(map(os.path.exists, files))):
        missing = ", ".join(str(rank) for rank, file in enumerate(files) if not os.path.exists(file))
        raise Failed(f"nothing came from rank {missing} for {STALLED_SECONDS:g} s")
    parts = []
    for file in files:
        with open(file, encoding="utf-8") as opened:
            parts.append(json.load(opened))
    errors = [part["error"] for part in parts if "error" in part]
    if errors:
        raise Failed("; ".join(errors))
    return parts


def _commit(place: Place, contents: Contents, parts: list[dict[str, Any]]) -> None:
    files = [part for part in parts if part["file"] is not None]
    described = {
        "step": contents.step,
        "eval_loss": contents.eval_loss,
        "saved": time.time(),
        "state": contents.state,
        "files": {part["file"]: {"size": part["size"], "sha256": part["sha256"]} for part in files},
        "slices": {part["file"]: part["slices"] for part in files if part["slices"]},
        "scalars": {name: value for part in parts for name, value in part["scalars"].items()},
        "rng": [part["rng"] for part in parts],
    }
    for rank in range(place.world):
        os.unlink(_part(place, rank))
    path = os.path.join(place.partial, manifest.NAME)
    with open(path, "wb") as file:
        file.write(manifest.encode(described))
        file.flush()
        os.fsync(file.fileno())
    folder.commit(place.partial, place.final)


def _part(place: Place, rank: int) -> str:
    return os.path.join(place.partial, f"rank-{rank}.json")


def _put(place: Place, text: str) -> None:
    """The part is there whole or not at all."""
    path = _part(place, place.rank)
    with open(path + ".partial", "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(path + ".partial", path)


def _wait(place: Place, ready: Any) -> bool:
    """Until `ready`; False when nothing has grown for too long."""
    seen, deadline = -1, 0.0
    while not ready():
        grown = _bytes_in(place.partial)
        if grown != seen:
            seen, deadline = grown, time.monotonic() + STALLED_SECONDS
        elif time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _bytes_in(path: str) -> int:
    total = 0
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                total += entry.stat().st_size
    return total
