"""What a rank says when its part of a step fails, and which of several failing ranks says it.

In: the exception inside an action, or of a message whose other end is gone. Out: a `UserError` (exit code 4) that names rank,
stage, layers, microbatch, action and line. One rank's failure breaks the connections of all others a moment later: the
first to fail speaks, which a file beside the ranks' store settles, and the others end quietly.
"""

from __future__ import annotations

import os
import re
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from forgather_dsl.errors import UserError
from forgather_dsl.parallel.launch import OVER, STORE
from forgather_dsl.parallel.shard import HeadShard
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.actions import Action

__all__ = ["ActionFailed", "PeerLost", "failed", "out_of_memory", "raised", "speaks_first"]

_NO_MEMORY = ("out of memory", "can't allocate memory", "_ALLOC_FAILED")  # of CUDA, of the CPU's allocator, of cuBLAS

_REPEATABLE = (
    "; write deterministic = False in the experiment to run it all the same: no two runs will then have the same bits"
)


class ActionFailed(UserError):
    """An action raised `error`."""

    def __init__(self, part: Stage | HeadShard, action: Action, error: Exception) -> None:
        self.error = error
        where = f"rank {_number()}, {part.described}, microbatch {action.microbatch}, action {action}"
        super().__init__(f"{where}: {raised(error)}", exit_code=4)


class PeerLost(UserError):
    """The rank that a message comes from or goes to is gone, or did not answer in time. `doing` says what for."""

    def __init__(self, peer: str, doing: str, error: Exception) -> None:
        self.peer, self.doing, self.error = peer, doing, error
        reason = re.sub(r"^\[\S+\] ", "", str(error)).partition("\n")[0].partition(". This is")[0]
        super().__init__(f"rank {_number()} lost {peer} while {doing} ({reason})", exit_code=4)

    def within(self, doing: str) -> PeerLost:
        """The same, said more exactly."""
        return PeerLost(self.peer, doing, self.error)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what an action raised, says that there was no memory left."""
    cause = error.error if isinstance(error, ActionFailed) else error
    if isinstance(cause, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(cause, RuntimeError) and any(text in str(cause) for text in _NO_MEMORY)


def raised(error: Exception) -> str:
    """An error for a message: its kind, its line, its text."""
    text = str(error).strip() or "(without a message)"
    text += _REPEATABLE if "deterministic implementation" in text else ""
    return f"{type(error).__name__} at {_line(error)}: {text}"


def speaks_first() -> bool:
    """Whether this rank is the first of those that fail together; True for a rank that our launcher did not start."""
    if STORE not in os.environ:
        return True
    try:
        os.close(os.open(_mark(), os.O_CREAT | os.O_EXCL))
    except OSError:  # another was first, or the launcher has cleaned up already
        return False
    return True


def failed() -> bool:
    """Whether a rank of this run has failed: it has said so, or the launcher has seen it end."""
    return STORE in os.environ and (os.path.exists(_mark()) or os.path.exists(os.environ[STORE] + OVER))


def _mark() -> str:
    return f"{os.environ[STORE]}.failed"


def _number() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _line(error: Exception) -> str:
    """File and line: the innermost one of the user's own, else of ours, else of whoever raised."""
    frames = traceback.extract_tb(error.__traceback__)
    torch_folder, our_folder = str(Path(torch.__file__).parent), str(Path(__file__).parents[1])
    outside = [f for f in frames if not f.filename.startswith((torch_folder, "<"))]
    own = [f for f in outside if not f.filename.startswith(our_folder)]
    frame = (own or outside or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"
