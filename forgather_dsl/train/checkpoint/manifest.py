"""`manifest.json`: what a checkpoint holds, under a digest of its own, so that a flip anywhere in it is found.

In: a mapping. Out: one JSON document whose first entry is the SHA-256 of all bytes after it. Imports no torch.
`files` has size and SHA-256 of every file; `slices` where stored parts of larger tensors belong; `scalars` the optimizer's
numbers by parameter; `rng` the random state of each rank; `state` the place in the data, tokens and seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import Any

FORMAT = 2
NAME = "manifest.json"
_FILE = re.compile(r"rank-\d{1,6}\.safetensors")
_START = b'{"digest": "'
_DIGITS = 64
_KINDS: dict[str, Any] = {
    "step": int,
    "saved": (int, float),
    "state": dict,
    "files": dict,
    "slices": dict,
    "scalars": dict,
    "rng": list,
}


def encode(manifest: dict[str, Any]) -> bytes:
    """The bytes of the file."""
    body = b'", ' + json.dumps({"format": FORMAT, **manifest}).encode()[1:]
    return _START + hashlib.sha256(body).hexdigest().encode() + body


def decode(data: bytes) -> dict[str, Any]:
    """The mapping again. Raises ValueError: the bytes are not those that were written, or of another version."""
    end = len(_START) + _DIGITS
    digest = data[len(_START) : end]
    if not data.startswith(_START) or hashlib.sha256(data[end:]).hexdigest().encode() != digest:
        raise ValueError(f"{NAME} does not match its digest")
    manifest = json.loads(data)
    del manifest["digest"]
    if manifest.get("format") != FORMAT:
        raise ValueError(f"format {manifest.get('format')}, this version reads {FORMAT}")
    for key, kind in _KINDS.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{NAME} has no {key}")
    if not isinstance(manifest.get("eval_loss"), (int, float, type(None))):
        raise ValueError(f"{NAME} has an eval_loss that is no number")
    for name, about in manifest["files"].items():
        if not _FILE.fullmatch(name):
            raise ValueError(f"{NAME} names a file {name!r}")
        if set(about) != {"size", "sha256"}:
            raise ValueError(f"{NAME} does not describe {name}")
    return manifest


def read(path: str) -> dict[str, Any]:
    """The manifest of the checkpoint at `path`. Raises OSError or ValueError."""
    file = os.path.join(path, NAME)
    if os.path.islink(file):
        raise ValueError(f"{NAME} is a symbolic link")
    with open(file, "rb") as opened:
        return decode(opened.read())
