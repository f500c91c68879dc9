"""A baseline anyone understands: bits per byte of gzip -9 on the same text, to print next to a model's.

In: text, piece by piece. Out: 8 * compressed bytes / bytes. It ignores the size of the model's weights, so it is a
yardstick, not a contest in compression.
"""

from __future__ import annotations

import zlib

from forgather_dsl.data.documents import Source

GZIP = 31  # zlib's window bits for the largest window with gzip's header and trailer


class GzipSize:
    """What `gzip -9` makes of the concatenation of all text added, without keeping it."""

    def __init__(self) -> None:
        self.compressor = zlib.compressobj(9, zlib.DEFLATED, GZIP)
        self.num_bytes = 0
        self.compressed_bytes = 0

    def add(self, text: bytes) -> None:
        """Append UTF-8 text."""
        self.num_bytes += len(text)
        self.compressed_bytes += len(self.compressor.compress(text))

    def bits_per_byte(self) -> float:
        """8 * compressed / bytes of the text so far; more may be added. NaN for no text."""
        if self.num_bytes == 0:
            return float("nan")
        size = self.compressed_bytes + len(self.compressor.copy().flush())
        return 8 * size / self.num_bytes


def gzip_bits_per_byte(source: Source) -> float:
    """Bits per byte of gzip -9 on the source's documents, concatenated; NaN for no text."""
    size = GzipSize()
    for pieces in source.pieces():
        for piece in pieces:
            size.add(piece.encode())
    return size.bits_per_byte()
