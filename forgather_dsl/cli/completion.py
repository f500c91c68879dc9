"""Bash cuts the line at colons, so that `file.py:Class` comes as three words; here they are one again, and the answer is cut.

In: COMP_WORDS and COMP_CWORD as typer's bash function hands them on. Out: the same with targets whole, and the part of each
answer that bash has not got yet. Other shells do not cut.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable

SHELL = "_FORGATHER_DSL_COMPLETE"


def joined(words: list[str], cursor: int) -> tuple[list[str], int]:
    """Words up to the cursor with `a`, `:`, `b` as `a:b`, and where the cursor's word is now."""
    out: list[str] = []
    glue = False
    for word in words[: cursor + 1]:
        if out and (glue or word == ":"):
            out[-1] += word
        else:
            out.append(word)
        glue = word == ":"
    return out, len(out) - 1


def whole_targets(complete: Callable[[], object]) -> None:
    """Run typer's completion; in bash with the words joined, and what stands before a colon left out of the answers."""
    if os.environ.get(SHELL) != "complete_bash":
        complete()
        return
    words, cursor = joined(os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"]))
    os.environ.update(COMP_WORDS="\n".join(words), COMP_CWORD=str(cursor))
    head, colon, _ = words[cursor].rpartition(":")
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            complete()
    finally:  # typer ends by SystemExit
        for line in answers.getvalue().splitlines():
            print(line.removeprefix(head + colon))
