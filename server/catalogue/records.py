"""Measurements of a model, kept beside the built models as long as its weights and its shape do not change.

Loads no model library: the gateway reads it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from protocol import messages as m
from server.catalogue.architecture import Architecture
from server.catalogue.engines import BUILD_FORMAT
from server.catalogue.files import hashed_files
from server.catalogue.notes import file_state, named_after, replace

MAX_BYTES = 64 << 10
Found = dict[str, m.Fidelity]
"""engine/precision/KV cache -> what was measured."""


class _Record(msgspec.Struct):
    stamp: str
    found: Found


class Records:
    """One small file for each model."""

    def __init__(self, cache_dir: Path, folder: Path, arch: Architecture, base: Path | None = None) -> None:
        """Find the file of the model in `folder`, as it is now. Raises: BadModel, OSError."""
        hashed = hashed_files(folder, base)
        self._file = named_after(hashed[0], cache_dir, ".fidelity")
        states = " ".join(file_state(file) for file in hashed)
        self._stamp = ascii(f"{BUILD_FORMAT} {arch} {states}")  # a path need not be text

    def add(self, engine: str, precision: str, cache: str, fidelity: m.Fidelity) -> None:
        """Keep a measurement. Raises: OSError."""
        found = self.found() | {f"{engine}/{precision}/{cache}": fidelity}
        replace(self._file, msgspec.json.encode(_Record(self._stamp, found)))

    def drop(self, engine: str, precision: str) -> None:
        """Forget the measurements, with each cache, of what is built in another way from now on. Raises: OSError."""
        found = self.found()
        kept = {name: each for name, each in found.items() if not name.startswith(f"{engine}/{precision}/")}
        if kept != found:
            replace(self._file, msgspec.json.encode(_Record(self._stamp, kept)))

    def found(self) -> Found:
        """Return the measurements; none where they are of another model or of another way of building."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            with self._file.open("rb") as file:
                record = msgspec.json.decode(file.read(MAX_BYTES), type=_Record)
            if record.stamp == self._stamp:
                return record.found
        return {}
