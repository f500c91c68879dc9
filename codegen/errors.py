"""What cannot be written out: every problem with its place, its reason and what to do instead, all at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One reason why no source is written."""

    reason: str  # what is wrong, as a sentence without a full stop
    hint: str = ""  # what to write instead
    file: str = ""
    line: int = 0  # 1-based; 0: not of one line
    text: str = ""  # that line of source
    chain: tuple[str, ...] = ()  # why the code is reachable, from the root class to it

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.line else f"{self.file}: " if self.file else ""
        lines = [f"{place}{self.reason}"]
        if self.text:
            lines.append(f"    {self.text.strip()}")
        if self.chain:
            lines.append(f"  reached through {' -> '.join(self.chain)}")
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class CodegenError(Exception):
    """The source of a model cannot be written out faithfully; `problems` says why, all at once."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = tuple(problems)
