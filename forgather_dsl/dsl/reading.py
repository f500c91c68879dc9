"""JSON files that may come from anyone: a path in, plain data out, within bounds, or one line that says what is wrong.

Refused: what is no ordinary file, more bytes than such a file ever has, text that is not UTF-8, keys that stand twice
(two readers could see two experiments), NaN and infinity, numbers and nesting without end.
"""

from __future__ import annotations

import json
import math
import os
import stat
from typing import Any

from .errors import LoadError

MOST_BYTES = 16 * 2**20  # config.json of a large experiment has some ten thousand


def read_json(path: str, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file. Raises LoadError."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(handle)
            if not stat.S_ISREG(found.st_mode):
                raise LoadError(f"{path} is not an ordinary file")
            if found.st_size > most_bytes:
                raise LoadError(f"{path} has {found.st_size:,} bytes; files of its kind have at most {most_bytes:,}")
            text = file.read(most_bytes + 1)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error
    return parse_json(text, path)


def parse_json(text: bytes, where: str) -> Any:
    """JSON text as data, by the same rules. Raises LoadError."""
    try:
        return json.loads(
            text.decode("utf-8-sig"), object_pairs_hook=_once, parse_constant=_no_constant, parse_float=_finite
        )
    except RecursionError:
        raise LoadError(f"{where}: nested too deeply to be read") from None
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise LoadError(f"{where} is not JSON: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return found


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{text[:20]} is larger than a number can be")
    return number


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")
