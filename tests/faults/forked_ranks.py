"""For scripts whose ranks are forked: ranks that work and their exit codes, and a small corpus."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

SECONDS = 900  # a deadlock ends the rank


def forked(ranks: int, work: Callable[[int], int]) -> list[int]:
    """Fork ranks that do `work(rank)` and end with what it returns, 1 for an exception; their exit codes."""
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(2, 1)  # banners
                signal.alarm(SECONDS)
                os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank)}
                code = work(rank)
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def write_corpus(folder: str) -> None:
    """Thirty small files in FOLDER/corpus."""
    Path(folder, "corpus").mkdir()
    for number in range(30):
        lines = [f"def function_{number}_{i}(x, y={i}):\n    return x * {i} + y\n" for i in range(12)]
        Path(folder, "corpus", f"file{number}.txt").write_text("\n".join(lines))
