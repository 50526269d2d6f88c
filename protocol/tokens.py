r"""Names of tokens that are parts of characters: their bytes, as `bytes:\xe2\x80`."""

from __future__ import annotations

PART = "bytes:"
BYTE = "\\x"


def name_of_part(data: bytes) -> str:
    """Return the name of a token of these bytes, which are no text."""
    return PART + "".join(f"{BYTE}{byte:02x}" for byte in data)


def bytes_of(name: str) -> bytes:
    """Return the bytes of a token that was named by them, or of its text."""
    if not name.startswith(PART + BYTE):
        return name.encode()
    return bytes.fromhex(name.removeprefix(PART).replace(BYTE, ""))
