"""Which checkpoints stay: the last, every n-th step, the best by evaluation. Imports no torch.

Runs after a commit alone, so the newest is whole. What is damaged is neither counted nor deleted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

from . import folder, verify


class Keep(NamedTuple):
    """How many stay."""

    last: int = 2
    every: int | None = None  # steps: every n-th stays for ever
    best: int = 0  # by eval loss, of those saved right after an evaluation


class Entry(NamedTuple):
    """A committed checkpoint."""

    path: str
    step: int
    eval_loss: float | None = None  # nats; None where nothing was evaluated at this step


def complete(where: str) -> list[Entry]:
    """The committed checkpoints in a folder whose files are all there, newest first."""
    entries = []
    for path in folder.listed(where):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            found = verify.contents(path)
            entries.append(Entry(path, found["step"], found.get("eval_loss")))
    return entries


def reasons(entries: Sequence[Entry], keep: Keep) -> dict[str, list[str]]:
    """Why each of `entries`, newest first, stays, by path; nothing for those that may go. The first always stays."""
    why: dict[str, list[str]] = {entry.path: [] for entry in entries}
    newest: dict[int, Entry] = {}  # of a step that was written twice the later counts
    for entry in entries:
        newest.setdefault(entry.step, entry)
    counted = list(newest.values())
    for entry in counted[: max(1, keep.last)]:
        why[entry.path].append(f"last {keep.last}")
    for entry in counted:
        if keep.every and entry.step % keep.every == 0:
            why[entry.path].append(f"every {keep.every}")
    evaluated = [(entry.eval_loss, -entry.step, entry.path) for entry in counted if entry.eval_loss is not None]
    for _, _, path in sorted(evaluated)[: keep.best]:
        why[path].append(f"best {keep.best}")
    return why


def prune(where: str, keep: Keep, committed: int) -> None:
    """Delete what need not stay, after a checkpoint of step `committed` has been committed.

    Later steps go too: they are of a course that this run has left, by going on from an earlier checkpoint.
    """
    entries = complete(where)
    current = [entry for entry in entries if entry.step <= committed]
    why = reasons(current, keep)
    for entry in entries if current else ():
        if not why.get(entry.path):
            with contextlib.suppress(OSError):  # it stays a while longer
                folder.discard(entry.path)
