#!/usr/bin/env python3
"""Draw the program's icon: a page whose last line goes on in another ink, as the window shows what a model wrote.

    python -m scripts.draw_icon

Writes client/window/assets/icon/N.png for each size, from shapes, with the edges of each size on its own pixels.
"""

from __future__ import annotations

import argparse
import struct
import zlib
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from client.window.icon import FOLDER, SIZES, file_of

FINE = 8
"""Samples a pixel in each direction, whose mean smooths the edges."""
GROUND, PAPER = (31, 41, 61), (250, 247, 240)
INK, MODEL = (92, 98, 112), (232, 142, 52)
Shape: TypeAlias = tuple[tuple[int, int, int], float, float, float, float, float]
"""Colour, left, top, right, bottom, radius of the corners; in sixteenths of the icon."""
SHAPES: tuple[Shape, ...] = (
    (GROUND, 0, 0, 16, 16, 3.5),
    (PAPER, 3, 2, 13, 14, 1),
    (INK, 5, 4, 11, 5, 0.5),
    (INK, 5, 6, 11, 7, 0.5),
    (INK, 5, 8, 8, 9, 0.5),
    (MODEL, 8, 8, 11, 9, 0.5),
    (MODEL, 5, 10, 10, 11, 0.5),
)


def draw(size: int) -> NDArray[np.uint8]:
    """Return the icon's pixels.  # [size, size, 4]"""
    places = (np.arange(size * FINE) + 0.5) / FINE * 16 / size
    x, y = np.meshgrid(places, places)
    picture = np.zeros((size, size, 4))
    for colour, left, top, right, bottom, radius in SHAPES:
        # How far a place is outside the rectangle that is smaller by the radius.
        aside = np.maximum(np.maximum(left + radius - x, x - right + radius), 0)
        above = np.maximum(np.maximum(top + radius - y, y - bottom + radius), 0)
        inside = (aside**2 + above**2 <= radius**2).reshape(size, FINE, size, FINE).mean(axis=(1, 3))[..., None]
        picture[..., :3] = picture[..., :3] * (1 - inside) + np.array(colour) * inside
        picture[..., 3:] = np.maximum(picture[..., 3:], inside * 255)
    return np.rint(picture).astype(np.uint8)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG of RGBA pixels whose rows are not filtered, which client/window/icon.py reads."""
    size = len(pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", size, size, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for size in SIZES:
        file_of(size).write_bytes(png(draw(size)))
        print(file_of(size))


if __name__ == "__main__":
    main()
