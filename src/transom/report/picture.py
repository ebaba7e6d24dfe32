"""Pictures in a report: grey values as PNG in the page itself, the original beside what was made of it.

Threat model: pixels are the auditor's own data; the page that shows them is for the auditor's eyes.
Does not protect anything.
Source: the PNG specification, third edition, sections 5 and 11 (grey, 8 bits, no filter).
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass, field

import numpy as np

from transom.report.statistics import Floats


@dataclass(frozen=True)
class Picture:
    """One image as it was and as the attack made it, each as the address of a PNG (`data:`)."""

    original: str = field(repr=False)
    recovered: str = field(repr=False)


def picture(original_HW: Floats, recovered_HW: Floats) -> Picture:
    """Of grey values from 0 to 1."""
    return Picture(png(original_HW), png(recovered_HW))


def png(grey_HW: Floats) -> str:
    """The address of a PNG of grey values; those outside 0 to 1 are drawn back."""
    height, width = grey_HW.shape
    bytes_HW = np.rint(np.clip(grey_HW, 0, 1) * 255).astype(np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in bytes_HW)
    parts = (
        _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        _chunk(b"IDAT", zlib.compress(lines, 9)),
        _chunk(b"IEND", b""),
    )
    return "data:image/png;base64," + b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(parts)).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
