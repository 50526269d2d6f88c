"""What was measured of a model, kept beside the built models for as long as its weights' file stays as it is.

Standard library and messages only: the gateway reads it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import msgspec

from protocol import messages as m
from server.catalogue import BUILD_FORMAT

MAX_BYTES = 4096


def file_state(file: Path) -> str:
    """Size, time, inode and place of a file: what git's index takes for a file that has not changed. Raises: OSError."""
    stat = file.resolve().stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {file.resolve()}"


def named_after(file: Path, folder: Path, ending: str) -> Path:
    """Where a folder keeps a note about a file."""
    return folder / f"{hashlib.sha256(str(file.resolve()).encode(errors='surrogateescape')).hexdigest()[:32]}{ending}"


class Records:
    """One small file for each weights' file, engine and precision."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, weights: Path, engine: str, precision: str, fidelity: m.Fidelity) -> None:
        """Raises: OSError."""
        place = self._place(weights, engine, precision)
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = place.with_suffix(f".{os.getpid()}")
        draft.write_bytes(_stamp(weights) + msgspec.json.encode(fidelity))
        draft.replace(place)

    def find(self, weights: Path, engine: str, precision: str) -> m.Fidelity | None:
        """None where nothing was measured, or of another file or another way of building."""
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            with self._place(weights, engine, precision).open("rb") as file:
                content = file.read(MAX_BYTES)
            stamp = _stamp(weights)
            if content.startswith(stamp):
                return msgspec.json.decode(content[len(stamp) :], type=m.Fidelity)
        return None

    def _place(self, weights: Path, engine: str, precision: str) -> Path:
        return named_after(weights, self._folder, f"-{engine}-{precision}.fidelity")


def _stamp(weights: Path) -> bytes:
    return f"{BUILD_FORMAT} {file_state(weights)}\n".encode(errors="surrogateescape")
