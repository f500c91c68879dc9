"""Named held-out sets: what an experiment is evaluated on beside `eval_data`, and which of them are refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from ..dsl import replace
from .data import Source

__all__ = ["SET_NAME", "refused_sets"]

SET_NAME = re.compile(r"[A-Za-z0-9_-]+")


def refused_sets(sets: Mapping[str, Source], data: Source) -> Iterator[tuple[str, str]]:
    """(path, reason) of each set that would not be held out, or whose name no metric could bear."""
    for name, source in sets.items():
        at = f"eval_sets.{name}"
        if not SET_NAME.fullmatch(name):
            yield "eval_sets", f"{name!r} is no name of a set; write letters, digits, - and _"
        elif source.split == "train":
            yield (
                at,
                "split='train' is the part for training; write split='all', or split='held_out' for the other part",
            )
        elif source.split == "all" and (held_out := _held_out_of(data)) is not None and _same_text(source, data):
            yield at, f"this is the text that data trains on; write {held_out}"


def _held_out_of(data: Source) -> str | None:
    """How to write what `data` does not train on; None where it is evaluated on nothing of its own."""
    return "split='held_out'" if data.split == "train" and data.held_out else "other text"


def _same_text(source: Source, data: Source) -> bool:
    if type(source) is not type(data):
        return False
    return replace(source, split=data.split, held_out=data.held_out) == data
