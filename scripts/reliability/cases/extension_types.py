"""msgpack's extension types, timestamps among them, in all sizes: as message, value, name, or with a false length."""

from __future__ import annotations

import struct

CODES = [0, 1, 5, 127, 128, 254, 255]
FIXED = [bytes([0xD4 + i, code]) + bytes(1 << i) for i in range(5) for code in CODES]
SIZED = [bytes([0xC7, size, code]) + bytes(size) for size in (0, 1, 4, 8, 12, 255) for code in CODES]
LONG = [struct.pack(">BIB", 0xC9, 100_000, code) + bytes(100_000) for code in CODES]
LIES = [struct.pack(">BIB", 0xC9, size, code) for size in (0, 1, 2**31, 2**32 - 1) for code in CODES]
HEAD = b"\x83\xa1v\x01\xa4type\xa4ping"
FRAMES = [
    *FIXED, *SIZED, *LONG, *LIES,
    *(HEAD + b"\xa2id" + value for value in (*FIXED, *SIZED, *LONG, *LIES)),
    *(HEAD + value + b"\x01" for value in (*FIXED, *SIZED)),
    *(b"\x82\xa1v\x01\xa4type" + value for value in (*FIXED, *SIZED)),
]  # fmt: skip
