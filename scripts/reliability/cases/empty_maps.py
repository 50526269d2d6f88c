"""Maps of empty maps, as many as a message holds: 64 bytes in memory for one on its way."""

from __future__ import annotations

import struct

MANY = b"\xdc" + struct.pack(">H", 65_000) + b"\x80" * 65_000
MAP = b"\xde" + struct.pack(">H", 40_000) + b"".join(b"\xa4" + f"{i:04x}".encode() + b"\x80" for i in range(40_000))
FRAMES = [
    MANY,
    MAP,
    b"\x94" + MANY * 4,
    b"\x82\xa1v\x01\xa4type" + MAP,
    b"\x83\xa1v\x01\xa4type\xa4ping\xa2id\x93" + MANY * 3,
    b"\x83\xa1v\x01\xa4type\xa8generate\xaaprompt_ids\x93" + MANY * 3,
]
