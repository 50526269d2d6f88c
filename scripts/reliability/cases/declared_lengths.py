"""Strings, binaries, arrays and maps that claim to be large and are empty, alone and nested a thousandfold."""

from __future__ import annotations

import struct

HEAD = b"\x83\xa1v\x01\xa4type\xa4ping\xa2id"
SIZES = [1, 65_535, 70_000, 70_001, 262_145, 2**31 - 1, 2**31, 2**32 - 1]
SHORT = [bytes([kind]) + struct.pack(">H", 65_535) for kind in (0xC5, 0xDA, 0xDC, 0xDE)]
HEADERS = [*SHORT, *(bytes([kind]) + struct.pack(">I", size) for kind in (0xC6, 0xDB, 0xDD, 0xDF) for size in SIZES)]
INSIDE = [
    *(header * 1000 for header in HEADERS if header[0] in b"\xdc\xdd"),
    *((header + b"\xa1a") * 1000 for header in HEADERS if header[0] in b"\xde\xdf"),
]
FRAMES = [*HEADERS, *(HEAD + header for header in HEADERS), *INSIDE, *(HEAD + nested for nested in INSIDE)]
