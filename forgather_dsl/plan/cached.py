"""Results that took a while, kept on disk under a hash of what they were made from.

In: JSON values, and how to make the result. Out: the result. A file is written whole or not at all (a rename), one that is
damaged counts as none, and where nothing can be written the result is made each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

__all__ = ["cache_root", "remembered"]


def cache_root() -> Path:
    """`$FORGATHER_CACHE`, else `$XDG_CACHE_HOME/forgather_dsl`, else `~/.cache/forgather_dsl`."""
    if chosen := os.environ.get("FORGATHER_CACHE"):
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "forgather_dsl"


def remembered(kind: str, inputs: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    """What `make` returned the first time for these inputs, both JSON values."""
    text = json.dumps(inputs, sort_keys=True)
    file = cache_root() / kind / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    found = _read(file)
    if found is None:
        found = make()
        with contextlib.suppress(OSError):
            _write(file, found)
    return found


def _read(file: Path) -> Any:
    """None when there is none, or when it does not hold what was written."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return found["value"] if found["sum"] == _sum(found["value"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as opened:
            json.dump({"sum": _sum(value), "value": value}, opened)
        os.replace(partial, file)
    except BaseException:
        os.unlink(partial)
        raise


def _sum(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
