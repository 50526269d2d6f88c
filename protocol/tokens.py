r"""Bytes of tokens, and names of those that are parts of characters: their bytes, as `bytes:\xe2\x80`."""

from __future__ import annotations

import contextlib
import itertools

from protocol import messages as m
from protocol.errors import NotGpt2d

PART = "bytes:"
BYTE = "\\x"


def name_of_part(data: bytes) -> str:
    """Return the name of a token of these bytes, which are no text."""
    return PART + "".join(f"{BYTE}{byte:02x}" for byte in data)


def bytes_of(name: str) -> bytes:
    """Return the bytes of a token that was named by them, or of its text."""
    if name.startswith(PART + BYTE):
        with contextlib.suppress(ValueError):  # no name of ours, but a text that begins like one
            return bytes.fromhex(name.removeprefix(PART).replace(BYTE, ""))
    return name.encode()


def pieces_of(told: m.Tokenized) -> list[bytes]:
    """Return the bytes of each token of a text. Raises: NotGpt2d for places that are not those of its tokens."""
    data = told.text.encode()
    places = [0, *told.offsets, len(data)]
    if len(told.offsets) != len(told.ids) + 1 or places != sorted(places):
        raise NotGpt2d("the server's places of tokens do not fit the tokens")
    return [data[begin:end] for begin, end in itertools.pairwise(told.offsets)]
