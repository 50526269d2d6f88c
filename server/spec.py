"""What a worker is told at its start, on its stdin. Apart from both sides, so that the gateway imports no engine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Spec:
    """What a worker is told at its start."""

    endpoint: str
    server_key: str
    identity: str
    model: str
    folder: str
    engine: str
    precision: str
    threads: int
    rows: int
    prefix_cache_bytes: int
    position_bytes: int
    """What the keys and values of one position take."""
    cache_dir: str
    cache_bytes: int

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Spec:
        return Spec(**json.loads(line))
