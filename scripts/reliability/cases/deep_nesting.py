"""Arrays and maps inside each other: 100,000 of them, and as many as msgpack and Python just allow."""

from __future__ import annotations

PING = b"\x83\xa1v\x01\xa4type\xa4ping\xa2id"
DEPTHS = [300, *range(900, 1040, 4), 100_000]
FRAMES = [
    *(b"\x91" * depth for depth in DEPTHS),
    *(b"\x91" * depth + b"\x90" for depth in DEPTHS),
    *(b"\x81\xa1a" * min(depth, 80_000) + b"\x80" for depth in DEPTHS),
    *(PING + b"\x91" * depth + b"\x90" for depth in DEPTHS),
    *(b"\x82\xa1v\x01\xa4type" + b"\x91" * depth + b"\x90" for depth in DEPTHS),
    *(b"\x81\xa1v" + b"\x81\xa1a" * depth + b"\x80" for depth in DEPTHS[:-1]),
    *(b"\x83\xa1v\x01\xa4type\xa8generate\xa6prompt" + b"\x91" * depth + b"\x90" for depth in DEPTHS),
]
