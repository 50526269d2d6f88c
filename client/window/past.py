"""The history across sessions: a line for each generation, in a file that only this user can read.

Every window adds to it. Probabilities are left out: they take far more room than the texts.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from client.window.results import MAX_HISTORY, Entry

MAX_BYTES = 16 << 20
"""Most bytes that are read, and half of those at which a file is cut to the generations that count."""


def append(file: Path, entries: Iterable[Entry]) -> None:
    """Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    data = b"".join(_line(entry) for entry in entries)
    with open(file, "a+b", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        if stream.tell():
            stream.seek(-1, os.SEEK_END)
            data = data if stream.read() == b"\n" else b"\n" + data  # a full disk has cut the last line
        stream.write(data)


def read(file: Path, write: Callable[[Path, bytes], None]) -> list[Entry]:
    """Return the newest generations, numbered from 1; what is damaged is left out. A file that is too long is cut."""
    with contextlib.suppress(OSError):
        size = file.stat().st_size
        with file.open("rb") as stream:
            stream.seek(max(0, size - MAX_BYTES))
            lines = stream.read().splitlines()
        newest = (entry for line in reversed(lines) if (entry := _entry(line)))
        found = list(itertools.islice(newest, MAX_HISTORY))[::-1]
        if size > 2 * MAX_BYTES or len(lines) > 2 * MAX_HISTORY:
            write(file, b"".join(_line(entry) for entry in found))
        return [replace(entry, number=number) for number, entry in enumerate(found, 1)]
    return []


def _line(entry: Entry) -> bytes:
    return msgspec.json.encode(entry.bare) + b"\n"


def _entry(line: bytes) -> Entry | None:
    with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return msgspec.json.decode(line, type=Entry)
    return None
