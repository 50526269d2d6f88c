"""NaN and the infinities, in 32 and 64 bits, in each float of a generation, and where whole numbers are wanted."""

from __future__ import annotations

import msgpack
from msgspec import inspect

from protocol import messages as m
from scripts.reliability.ranges import bare, fields_of

FLOATS = [field.name for field in fields_of(m.Generate) if isinstance(bare(field.type), inspect.FloatType)]
VALUES = [
    b"\xcb\x7f\xf8" + bytes(6),
    b"\xcb\x7f\xf0" + bytes(6),
    b"\xcb\xff\xf0" + bytes(6),
    b"\xca\x7f\xc0\0\0",
    b"\xca\x7f\x80\0\0",
    b"\xca\xff\x80\0\0",
]
HEAD = b"\x84\xa1v\x01\xa4type\xa8generate\xa6prompt\xa1x"
FRAMES = [
    HEAD + msgpack.packb(name) + value for name in [*FLOATS, "top_k", "seed", "deadline_ms", "id"] for value in VALUES
]
FRAMES += [HEAD + msgpack.packb("logit_bias") + b"\x91\x92\x05" + value for value in VALUES]
assert len(FLOATS) >= 10
