"""The orders that a worker gets at its start, on its stdin. Apart from both sides: the gateway imports no engine."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

CUT_OFF, UNREACHED = 4, 5
"""Exit codes of a worker whose connection to the gateway broke, or was never made."""


class CannotRun(RuntimeError):
    """Says why a node cannot run a worker's engine, and what to do: it will not be otherwise in a while."""


@dataclass(frozen=True)
class Spec:
    """A worker's orders."""

    endpoint: str
    server_key: str
    identity: str
    model: str
    folder: str
    """Where the model's files are; empty: to be downloaded from the hub, where `model` is the repository."""
    hub_cache: str
    models_dir: str
    engine: str
    precision: str
    threads: int
    rows: int | None
    """None: as many as fit into `room`, for a model whose shape is known when its config.json has been downloaded."""
    room: int
    """Bytes that the worker may take."""
    cache_dir: str
    cache_bytes: int
    node: str = ""
    """The machine's name, where it goes by another than its own."""
    compiled: bool = False
    measures: bool = False
    """True: only measure what the precision costs."""

    @property
    def name(self) -> str:
        return f"{self.model}/{self.engine}/{self.precision}"

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Spec:
        return Spec(**json.loads(line))
