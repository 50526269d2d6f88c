"""The program's icon, in the sizes that scripts/draw_icon.py has drawn."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "assets" / "icon"
SIZES = (16, 24, 32, 48, 64, 128, 256)
HEADER = len(b"\x89PNG\r\n\x1a\n")


@dataclass(frozen=True)
class Image:
    """One size of it. It has what glfw asks of an image of Pillow."""

    size: tuple[int, int]
    pixels: bytes
    """RGBA."""

    def convert(self, _mode: str) -> Image:
        return self

    def getdata(self) -> list[tuple[int, ...]]:
        return [tuple(self.pixels[i : i + 4]) for i in range(0, len(self.pixels), 4)]


def file_of(size: int) -> Path:
    return FOLDER / f"{size}.png"


def read(size: int) -> Image:
    """Return the icon of a size; no other PNG than scripts/draw_icon.py's can be read. Raises: OSError."""
    png = file_of(size).read_bytes()
    at, data = HEADER, b""
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        data += png[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    rows, step = zlib.decompress(data), 4 * size + 1  # each row begins with its filter, which is none
    return Image((size, size), b"".join(rows[row * step + 1 : (row + 1) * step] for row in range(size)))
