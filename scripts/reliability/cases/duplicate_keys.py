"""The same name many times in a map: the last one counts, and is checked as if it were alone."""

from __future__ import annotations

import struct

import msgpack

TYPES = b"".join(b"\xa4type" + msgpack.packb(name) for name in ("ping", "load", "generate", "nothing"))
FRAMES = [
    b"\x85\xa1v\x01" + TYPES,
    b"\x84\xa1v\x01\xa4type\xa4ping\xa2id\x01\xa2id\xff",
    b"\x84\xa4type\xa4ping\xa1v\x01\xa1v\x01\xa1v\xc0",
    b"\xde" + struct.pack(">H", 60_002) + b"\xa1v\x01\xa4type\xa4ping" + b"\xa2id\x01" * 59_999 + b"\xa2id\xc0",
    b"\x85\xa1v\x01\xa4type\xa8generate\xa6prompt\xa1x\xa1n\x01\xa1n\x00",
]
