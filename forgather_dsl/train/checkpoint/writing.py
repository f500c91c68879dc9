"""One rank's share of a checkpoint: `rank-N.safetensors`, written piece by piece and hashed on the way.

safetensors' own writer wants all bytes at once; ours needs one piece, and reads nothing back to hash it. The format is 8
bytes of header length, the header as JSON, the tensors (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import torch

from .snapshot import Snapshot, Source

SYNCED = 1 << 28  # bytes after which what is written goes to the disk, so that little is left for the end

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def ordered(sources: Sequence[Source]) -> list[Source]:
    """As they are stored: wide formats first, so that all are aligned."""
    return sorted(sources, key=lambda one: (-one.dtype.itemsize, one.key))


def size_of(sources: Sequence[Source]) -> int:
    """Bytes of the file."""
    return len(_header(ordered(sources))) + sum(one.size for one in sources)


def write(path: str, snapshot: Snapshot) -> dict[str, Any]:
    """Write a snapshot, whose sources are `ordered`, into a new file, down to the disk; {size, sha256}. Raises OSError."""
    digest, size, behind = hashlib.sha256(), 0, 0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    with open(handle, "wb", buffering=0) as file:

        def put(piece: bytes | memoryview) -> None:
            left = memoryview(piece)
            digest.update(left)
            while left:  # a disk that gets full, or a limit, takes a part
                left = left[file.write(left) :]

        header = _header(snapshot.sources)
        put(header)
        size = len(header)
        for piece in snapshot.pieces():
            put(piece)
            size, behind = size + len(piece), behind + len(piece)
            if behind >= SYNCED:
                os.fsync(handle)
                behind = 0
        os.fsync(handle)
    return {"size": size, "sha256": digest.hexdigest()}


def _header(sources: Sequence[Source]) -> bytes:
    """Length and header, padded to 8 bytes."""
    entries, end = {}, 0
    for one in sources:
        entries[one.key] = {"dtype": _NAMES[one.dtype], "shape": one.shape, "data_offsets": (end, end + one.size)}
        end += one.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
