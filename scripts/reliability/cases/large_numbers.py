"""Whole numbers of 2^63 and 2^64 - 1, and the least there is, in each field of each request that takes a number."""

from __future__ import annotations

import msgpack
from msgspec import inspect

from scripts.reliability.ranges import REQUESTS, around, bare, fields_of, good

FRAMES = []
for name, kind in REQUESTS.items():
    for field in fields_of(kind):
        plain = bare(field.type)
        types = [bare(one) for one in plain.types] if isinstance(plain, inspect.UnionType) else [plain]
        if any(isinstance(one, inspect.IntType | inspect.FloatType) for one in types):
            request = around(name, field, good(types[0])[0])
            assert request
            FRAMES += [msgpack.packb(request | {field.name: value}) for value in (2**63, 2**64 - 1, -(2**63))]
assert len(FRAMES) >= 90
