"""Notes about a file: its digest, valid as long as the file does not change; and how a note is written."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

CHUNK = 8 << 20
SETTLED_S = 2.0
"""A file as young as this may change again within the resolution of its time."""
SHA256 = re.compile("[0-9a-f]{64}")


def file_state(file: Path) -> str:
    """Return size, time, inode and place of a file, by which git's index knows an unchanged one. Raises: OSError."""
    real = file.resolve()
    stat = real.stat()
    return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino} {real}"


def named_after(file: Path, folder: Path, ending: str) -> Path:
    """Return where a folder keeps a note about a file."""
    return folder / f"{hashlib.sha256(str(file.resolve()).encode(errors='surrogateescape')).hexdigest()[:32]}{ending}"


def replace(file: Path, content: bytes) -> None:
    """Write a file that appears when it is complete. Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(f".{os.getpid()}")
    try:
        draft.write_bytes(content)
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)


def digest(file: Path, progress: Callable[[int, int], None]) -> str:
    """Return the SHA-256 of a file as hex; `progress(done, total)` counts bytes."""
    total = file.stat().st_size
    done = 0
    sha = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
            done += len(chunk)
            progress(done, total)
    return sha.hexdigest()


def known_digest(file: Path, memory: Path, progress: Callable[[int, int], None]) -> str:
    """As `digest`, but a file that has not changed since it was last read is not read again.

    What is known is kept in the folder `memory` with the file's size, time and inode, as git's index does it.
    """
    state, note = file_state(file), named_after(file, memory, ".digest")
    with contextlib.suppress(OSError, ValueError):
        sha, noted = note.read_text(encoding="utf-8", errors="surrogateescape").split(" ", 1)
        if noted == state and SHA256.fullmatch(sha):
            return sha
    sha = digest(file, progress)
    if time.time() - file.stat().st_mtime > SETTLED_S:
        with contextlib.suppress(OSError):
            replace(note, f"{sha} {state}".encode(errors="surrogateescape"))
    return sha


def known_digests(files: Sequence[Path], memory: Path, progress: Callable[[int, int], None]) -> dict[Path, str]:
    """As `known_digest`, of several files; the progress counts the bytes of them all."""
    sizes = [file.stat().st_size for file in files]

    def of_all(before: int, done: int, _: int) -> None:
        progress(before + done, sum(sizes))

    found = {}
    before = 0
    for file, size in zip(files, sizes, strict=True):
        found[file] = known_digest(file, memory, partial(of_all, before))
        before += size
    return found


def joined(digests: Sequence[str]) -> str:
    """Return one digest for the files of a model: that of the file, or of the files' digests."""
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
