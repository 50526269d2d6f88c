"""The entries of a zip as torch.save writes it, read strictly: stored, in one part, each name once, nothing unpacked.

Its own reader, since `zipfile` takes a directory of any size into memory and leaves such checks to its caller.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from protocol.errors import BadModel

MAX_DIRECTORY_BYTES = 8 << 20
END, END_64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q")
LOCATOR = struct.Struct("<4sLQL")
ENTRY, HEADER = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
IN_EXTRA = 0xFFFFFFFF
"""Stands for a size or place that is in the 64-bit field."""
ENCRYPTED = 1


def entries(file: Path) -> dict[str, tuple[int, int]]:
    """Return {name: (first byte, number of bytes)}. Raises: BadModel, OSError, struct.error."""
    with file.open("rb") as stream:
        end = stream.seek(0, 2)
        directory, begin = _directory(stream, file.name, end)
        found: dict[str, tuple[int, int]] = {}
        at = 0
        while at < len(directory):
            fields = ENTRY.unpack_from(directory, at)
            sign, lengths = fields[0], fields[10:13]
            flags, method = fields[3:5]
            name_end = at + ENTRY.size + lengths[0]
            name = directory[at + ENTRY.size : name_end].decode("utf-8", "replace")
            sizes = _large(directory[name_end : name_end + lengths[1]], fields[9], fields[8], fields[16])
            at += ENTRY.size + sum(lengths)
            if sign != b"PK\x01\x02" or at > len(directory):
                raise BadModel(f"{file.name} is a damaged zip: its directory is not whole")
            if method or flags & ENCRYPTED or sizes[0] != sizes[1]:
                raise BadModel(f"{file.name} has a compressed entry, {name[:80]!a}; torch.save only stores")
            if name in found:
                raise BadModel(f"{file.name} has two entries {name[:80]!a}")
            found[name] = (_content(stream, file.name, sizes[2], name, sizes[0], begin), sizes[0])
    return found


def _directory(stream: BinaryIO, name: str, end: int) -> tuple[bytes, int]:
    """Return the directory at the end of the zip, and where it begins."""
    stream.seek(max(0, end - END.size))
    last = END.unpack(stream.read(END.size))
    if last[0] != b"PK\x05\x06":
        raise BadModel(f"{name} is damaged or cut: it begins as a zip and does not end as one")
    size, begin = last[5], last[6]
    stream.seek(max(0, end - END.size - LOCATOR.size))
    locator = LOCATOR.unpack(stream.read(LOCATOR.size))
    if locator[0] == b"PK\x06\x07":
        stream.seek(min(locator[2], end))
        record = END_64.unpack(stream.read(END_64.size))
        if record[0] != b"PK\x06\x06":
            raise BadModel(f"{name} is a damaged zip: its directory is not found")
        size, begin = record[8], record[9]
    if size > MAX_DIRECTORY_BYTES or begin + size > end:
        raise BadModel(f"{name} is a damaged zip: its directory has {size} bytes")
    stream.seek(begin)
    return stream.read(size), begin


def _large(extra: bytes, size: int, packed: int, place: int) -> tuple[int, int, int]:
    """Take from the 64-bit field what does not fit into 32 bits."""
    values = [size, packed, place]
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == 1:
            fields = iter(struct.unpack_from(f"<{length // 8}Q", extra, 4))
            return tuple(next(fields, v) if v == IN_EXTRA else v for v in values)  # type: ignore[return-value]
        extra = extra[4 + length :]
    return size, packed, place


def _content(stream: BinaryIO, file: str, place: int, name: str, size: int, directory: int) -> int:
    """Return where an entry's content begins, behind its header."""
    stream.seek(min(place, directory))
    fields = HEADER.unpack(stream.read(HEADER.size))
    same = stream.read(fields[9]).decode("utf-8", "replace") == name
    begin: int = place + HEADER.size + fields[9] + fields[10]
    if fields[0] != b"PK\x03\x04" or fields[3] or not same or begin + size > directory:
        raise BadModel(f"{file} is a damaged zip: {name[:80]!a} does not lie where its directory says")
    return begin
