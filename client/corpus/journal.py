"""An output that grows, and can be gone on with after an interruption of any kind.

Beside OUT there are, until it is done, OUT.part with the rows so far and OUT.progress, which says how many bytes of
them are complete, and how far the work was by then. The second file is replaced as a whole once the first is on the
disk, so that whatever a killed process leaves behind is cut off where it was complete. OUT itself is there only when
all of it is.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import msgspec

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

EVERY_S = 1.0
"""Seconds between two notes of how far the work is."""
LOCKED_AT = 2**30
"""Place of the byte that is locked, on Windows, where nobody else can read it meanwhile."""


@dataclass(frozen=True)
class Done:
    """A passage that is done: a text, or a part of a long one."""

    rows: list[list[Any]]
    characters: int
    tokens: int
    whole: bool = True
    """Whether its text ends with it."""
    number: int = 0
    """Number of its last row among those of its text, where this goes on."""
    refused: str = ""
    """Why the server has refused it, and where it is in the files."""


class Position(msgspec.Struct, frozen=True):
    """How far the work is: the number of passages whose rows are written, and what the next row goes on from."""

    done: int
    size: int
    """Bytes of the rows."""
    texts: int = 0
    """Texts that are finished."""
    characters: int = 0
    """Characters of the passages."""
    number: int = 0
    """Number of the last row of a text that is not finished."""
    refused: int = 0
    """Texts that the server has refused, or a passage of them."""
    in_part: bool = False
    """Whether a text that is not finished is one of them."""


class Kept(msgspec.Struct, frozen=True):
    """Content of OUT.progress."""

    settings: dict[str, Any]
    """Everything that shapes the rows: going on with others would give a table that is neither."""
    position: Position


class Journal:
    """The rows of one output. A context manager: what is complete is on the disk when it ends, however it ends."""

    def __init__(self, out: Path, settings: dict[str, Any], header: str, *, overwrite: bool) -> None:
        """Begin, or go on where an earlier run with the same settings has stopped.

        `overwrite` replaces an output that is there already, and what was begun with other settings.

        Raises: ValueError where something is there that must not be overwritten; OSError.
        """
        self.out = out
        self.part = out.with_name(out.name + ".part")
        self.progress = out.with_name(out.name + ".progress")
        self._settings = settings
        if out.exists() and not out.is_file():
            raise ValueError(f"{out} is a folder or a device; --out must name a file")
        if out.exists() and not overwrite:  # it may have come while this was interrupted
            raise ValueError(f"{out} exists already; give another --out, or --overwrite to replace it")
        if out.exists() and not self.part.exists():
            self.progress.unlink(missing_ok=True)  # of a run that was killed when all but this was done
        self._file: IO[bytes] = self.part.open("ab")
        try:
            self._lock()
            position = self._begun(overwrite=overwrite)
            self.position = position or Position(done=0, size=0)
            self._file.truncate(self.position.size)
            self._note()
            if not self.position.size:
                self._file.write(header.encode())
                self.position = Position(done=0, size=len(header.encode()))
            self._noted = -math.inf  # the first passage is noted at once
        except BaseException:
            self._file.close()
            raise

    def _begun(self, *, overwrite: bool) -> Position | None:
        """Return how far an earlier run had come. Raises: ValueError where that was not for this output."""
        try:
            return self._kept()
        except ValueError:
            if overwrite:
                return None
            raise

    def _kept(self) -> Position | None:
        written = self._file.tell()
        try:
            kept = msgspec.json.decode(self.progress.read_bytes(), type=Kept)
        except FileNotFoundError:
            if written:
                raise ValueError(
                    f"{self.part} is there without {self.progress.name}, which says what it is; delete it, or start "
                    "again with --overwrite"
                ) from None
            return None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ValueError(f"{self.progress} is damaged; start again with --overwrite") from None
        if not kept.position.done:  # with whatever settings: it had a header at most
            return None
        now = msgspec.json.decode(msgspec.json.encode(self._settings))
        for name in {**kept.settings, **now}:
            was, given = kept.settings.get(name), now.get(name)
            if was != given and name == "files":
                raise ValueError(
                    f"{self.part} was begun with other texts: {_changed(was or {}, given or {})}; give another --out, "
                    "which keeps what is done, or start again with --overwrite"
                )
            if was != given:
                raise ValueError(
                    f"{self.part} was begun with another {name} ({_short(was)}, now {_short(given)}); go on as it was "
                    "begun, give another --out, or start again with --overwrite"
                )
        if written < kept.position.size:
            raise ValueError(f"{self.part} is shorter than {self.progress.name} says; start again with --overwrite")
        return kept.position

    def _lock(self) -> None:
        """Keep other processes away from the output. Raises: ValueError where one is at work on it."""
        try:
            if sys.platform == "win32":
                end = self._file.tell()
                self._file.seek(LOCKED_AT)
                msvcrt.locking(self._file.fileno(), msvcrt.LK_NBLCK, 1)
                self._file.seek(end)
            else:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process is writing {self.part}; wait for it, or give another --out") from None
        except OSError:  # a file system without locks
            return

    def write(self, done: Done, rows: str) -> None:
        """Add the rows of one more passage. Raises: OSError."""
        data = rows.encode()
        self._file.write(data)
        before = self.position
        self.position = Position(
            done=before.done + 1,
            size=before.size + len(data),
            texts=before.texts + int(done.whole),
            characters=before.characters + done.characters,
            number=done.number,
            refused=before.refused + (bool(done.refused) and not before.in_part),
            in_part=(bool(done.refused) or before.in_part) and not done.whole,
        )
        if time.monotonic() - self._noted > EVERY_S:
            self._note()

    def _note(self) -> None:
        """Note how far the rows are complete, once they are on the disk. Raises: OSError."""
        position = self.position
        self._file.flush()
        os.fsync(self._file.fileno())
        draft = self.progress.with_name(self.progress.name + ".new")
        with draft.open("wb") as stream:
            stream.write(msgspec.json.encode(Kept(self._settings, position)))
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(self.progress)
        self._noted = time.monotonic()

    def finish(self, convert: Callable[[Path, Path], None] | None = None) -> None:
        """Make the output of its rows: by `convert`, from the first file into the second, or as they are."""
        self._note()
        if convert:
            made = self.out.with_name(self.out.name + ".new")
            convert(self.part, made)
            made.replace(self.out)
            self._file.close()
            self.part.unlink()
        else:
            self._file.close()
            self.part.replace(self.out)
        self.progress.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file.closed:
            return
        with contextlib.suppress(OSError):  # as where the disk is full: the last note holds
            self._note()
        with contextlib.suppress(OSError):
            self._file.close()
        if not self.position.done:
            with contextlib.suppress(OSError):
                self.part.unlink()
                self.progress.unlink()


def _changed(was: dict[str, str], now: dict[str, str]) -> str:
    """Return what has become of the input's files, of which the digests are given."""
    changed = [file for file in was if file in now and was[file] != now[file]]
    if not changed:
        return f"{', '.join(was)}, now {', '.join(now)}"
    return f"{', '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
