"""The orders that a worker gets at its start, on its stdin. Apart from both sides: the gateway imports no engine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from server.catalogue.files import model_files

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
    share: int = 0
    """Bytes that its rows may take where they are more than the usual number."""
    node: str = ""
    """The machine's name, where it goes by another than its own."""
    compiled: bool = False
    cache: str = ""
    """What the KV cache is made of; empty: the default."""
    instruction_set: str = ""
    """The one that the engine native must use; empty: its own choice."""
    task: str = ""
    """`measure` or `calibrate`: only do that. Empty: serve."""
    base: str = ""
    """Name of what an adapter is merged into; empty: it is no adapter, or has yet to be downloaded itself."""
    base_folder: str = ""
    """Where the base's files are; empty: to be downloaded."""

    @property
    def name(self) -> str:
        return f"{self.model}/{self.engine}/{self.precision}"

    def to_line(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"

    @staticmethod
    def from_line(line: bytes) -> Spec:
        return Spec(**json.loads(line))


BASE = "base"
"""Folder, within that of an adapter which was sent to a node, of its base's files."""


def files_of(spec: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a spec's model by their names on a node, with its base's. Raises: BadModel, OSError."""
    own = model_files(Path(spec["folder"])).all if spec["folder"] else ()
    base = model_files(Path(spec["base_folder"])).all if spec["base_folder"] else ()
    return {file.name: file for file in own} | {f"{BASE}/{file.name}": file for file in base}
