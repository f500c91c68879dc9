"""Before ranks on several machines train: they see one run directory, and they have the same data.

Rank 0 writes a file that the others look for. A stage reads its tokens or targets from its own machine's cache, and another
release of Python's library, or another state of a folder, would train on something else without a sign.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from typing import Any

from ..errors import UserError
from .agreement import Ranks
from .prepare import Prepared

__all__ = ["require_same_data", "require_shared"]

SECONDS = 20.0  # for a new file to show on another machine: network file systems look again now and then


def require_shared(ranks: Ranks, path: str) -> None:
    """Raises UserError, on all ranks, unless each sees the run directory of rank 0. All ranks must call it."""
    name: str = ranks.gather(f".shared-{uuid.uuid4().hex}")[0]
    file = os.path.join(path, name)
    if ranks.rank == 0:
        os.makedirs(path, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_WRONLY))
    ranks.gather(None)  # it is there
    until = time.monotonic() + SECONDS
    while not (seen := os.path.exists(file)) and time.monotonic() < until:
        time.sleep(0.05)
    everyone = ranks.gather((socket.gethostname(), os.path.abspath(path), seen))
    if ranks.rank == 0:
        with contextlib.suppress(OSError):
            os.remove(file)
    blind = sorted({f"{host} ({place})" for host, place, sees in everyone if not sees})
    if blind:
        host, place, _ = everyone[0]
        _refuse(
            ranks,
            f"the run directory is {place} on {host}, and {', '.join(blind)} is not the same folder; checkpoints are written "
            "into it by all ranks, so put --out on a file system that all machines share (NFS, Lustre, sshfs), by its full path",
        )


def require_same_data(ranks: Ranks, prepared: Prepared) -> None:
    """Raises UserError, on all ranks, unless all have the tokens of rank 0. All ranks must call it."""
    parts: list[Any] = [prepared.train, prepared.held_out, *prepared.eval_sets.values()]
    mine = [part and part.fingerprint for part in parts]
    everyone = ranks.gather((socket.gethostname(), mine))
    other = [f"rank {rank} on {host}" for rank, (host, found) in enumerate(everyone) if found != everyone[0][1]]
    if other:
        _refuse(
            ranks,
            f"{', '.join(other)}: other training or held-out tokens than rank 0 on {everyone[0][0]}; the text or the tokenizer "
            "differs there (another state of the files, another Python whose library Stdlib reads): copy the data, or let "
            "FORGATHER_CACHE name one folder that all machines share",
        )


def _refuse(ranks: Ranks, problem: str) -> None:
    raise UserError(problem if ranks.rank == 0 else "")
