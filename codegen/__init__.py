"""Writes the source of a live nn.Module as one file that needs torch alone, proven to compute the same.

`trace` reads source and instance, `verify` compares in a process that has torch alone, `emit` does both and writes.
"""

from __future__ import annotations

from .errors import CodegenError, Problem
from .source import Decision, Source
from .trace import trace

__all__ = ["CodegenError", "Decision", "Problem", "Source", "trace"]
