"""Writes the source of a live nn.Module as one file that needs torch alone, proven to compute the same.

`trace` reads source and instance, `verify` compares in a process that has torch alone, `emit` does both and writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import CodegenError, Problem
from .source import Decision, Source

if TYPE_CHECKING:
    from .emission import emit
    from .proof import Check, Report, verify, verify_many
    from .tracer import trace

__all__ = ["Check", "CodegenError", "Decision", "Problem", "Report", "Source", "emit", "trace", "verify", "verify_many"]
_FROM = {"emit": "emission", "trace": "tracer"} | dict.fromkeys(("Check", "Report", "verify", "verify_many"), "proof")


def __getattr__(name: str) -> object:
    """What imports torch is imported when it is first used. No module here has the name of what it holds."""
    if name not in _FROM:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f".{_FROM[name]}", __name__), name)
    globals()[name] = value
    return value
