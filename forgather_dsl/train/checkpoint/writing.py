"""One rank's share of a checkpoint: `rank-N.safetensors`, written piece by piece and hashed on the way.

safetensors' own writer wants all bytes at once; ours needs one piece, and reads nothing back to hash it. The format is 8
bytes of header length, the header as JSON, the tensors (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from .snapshot import Snapshot, Source

BUFFER, BLOCK = 1 << 22, 4096  # bytes in one write, and that a disk takes at least
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
    digest, size = hashlib.sha256(), 0
    with _NewFile(path) as file:
        for piece in chain([memoryview(_header(snapshot.sources))], snapshot.pieces()):
            digest.update(piece)
            file.put(piece)
            size += len(piece)
        file.finish()
    return {"size": size, "sha256": digest.hexdigest()}


class _NewFile:
    """Past the page cache where the file system can: nobody reads a checkpoint soon, and what training reads stays cached.

    It also takes a tenth of the processor's time (benchmarks/LOG.md). The disk then takes whole blocks from aligned memory:
    the last one is filled up, and the file cut to its size.
    """

    def __init__(self, path: str) -> None:
        self.handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        self.buffer = memoryview(mmap.mmap(-1, BUFFER))  # begins at a page
        self.filled = self.size = self.behind = 0
        self.direct = hasattr(os, "O_DIRECT") and self._set(os.O_DIRECT)

    def __enter__(self) -> _NewFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.handle)

    def put(self, piece: memoryview) -> None:
        """Append."""
        while piece:
            room = min(len(piece), BUFFER - self.filled)
            self.buffer[self.filled : self.filled + room] = piece[:room]
            self.filled, self.size, piece = self.filled + room, self.size + room, piece[room:]
            if self.filled == BUFFER:
                self._write(self.buffer)
                self.filled = 0

    def finish(self) -> None:
        """Write the rest, down to the disk."""
        end = self.filled + (-self.filled % BLOCK if self.direct else 0)
        self._write(self.buffer[:end])
        os.ftruncate(self.handle, self.size)
        os.fsync(self.handle)

    def _write(self, left: memoryview) -> None:
        self.behind += len(left)
        while left:  # a disk that gets full, or a limit, takes a part
            try:
                left = left[os.write(self.handle, left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.direct = not self._set(0)  # no whole block, or this file system wants other sizes
        if self.behind >= SYNCED and not self.direct:
            os.fsync(self.handle)
            self.behind = 0

    def _set(self, flag: int) -> bool:
        flags = fcntl.fcntl(self.handle, fcntl.F_GETFL) & ~getattr(os, "O_DIRECT", 0)
        try:
            fcntl.fcntl(self.handle, fcntl.F_SETFL, flags | flag)
        except OSError:
            return False
        return True


def _header(sources: Sequence[Source]) -> bytes:
    """Length and header, padded to 8 bytes."""
    entries, end = {}, 0
    for one in sources:
        entries[one.key] = {"dtype": _NAMES[one.dtype], "shape": one.shape, "data_offsets": (end, end + one.size)}
        end += one.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
