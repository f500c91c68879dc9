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
from forgather_dsl.parallel.launch import STORE
from forgather_dsl.parallel.shard import HeadShard
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.actions import Action

__all__ = ["ActionFailed", "PeerLost", "failed", "speaks_first"]

MEMORY_ADVICE = (
    "; to need less memory there: recompute=FullRecompute(), a smaller microbatch_size, or fewer layers on this stage "
    "(parallel.cuts)"
)


class ActionFailed(UserError):
    """An action raised `error`."""

    def __init__(self, part: Stage | HeadShard, action: Action, error: Exception) -> None:
        text = str(error) or "(without a message)"
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            text += MEMORY_ADVICE
        super().__init__(
            f"rank {_number()}, {part.described}, microbatch {action.microbatch}, "
            f"action {action}: {type(error).__name__} at {_line(error)}: {text}",
            exit_code=4,
        )


class PeerLost(UserError):
    """The rank that a message comes from or goes to is gone, or did not answer in time. `doing` says what for."""

    def __init__(self, peer: str, doing: str, error: Exception) -> None:
        self.peer, self.doing, self.error = peer, doing, error
        reason = re.sub(r"^\[\S+\] ", "", str(error)).partition("\n")[0].partition(". This is")[0]
        super().__init__(f"rank {_number()} lost {peer} while {doing} ({reason})", exit_code=4)

    def within(self, doing: str) -> PeerLost:
        """The same, said more exactly."""
        return PeerLost(self.peer, doing, self.error)


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
    """Whether a rank of this run has said that it failed."""
    return STORE in os.environ and os.path.exists(_mark())


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
