"""A square picture as a PNG (W3C PNG specification: 8-bit RGB, no filter), to show to a model."""

from __future__ import annotations

import base64
import struct
import zlib


def png(side: int, pixels: bytes) -> str:
    """Base64 of the PNG. `pixels`: red, green and blue of each, 0-255, row by row."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + pixels[3 * side * row : 3 * side * (row + 1)] for row in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return base64.b64encode(whole).decode()
