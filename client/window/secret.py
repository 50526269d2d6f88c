"""A connect line in a field: what follows its # is a secret, of which only the length is shown."""

from __future__ import annotations

HIDDEN = "\u2022"


def shown(address: str, secret: str) -> str:
    """Return the text of the field."""
    return f"{address}#{HIDDEN * len(secret)}" if secret else address


def read(text: str, secret: str) -> tuple[str, str]:
    """Return the address and the secret of an edited text, whose hidden characters are those of the former secret."""
    address, rest = text.split("#", 1) if "#" in text else (text, "")
    before = len(rest) - len(rest.lstrip(HIDDEN))
    after = len(rest) - len(rest.rstrip(HIDDEN)) if before < len(rest) else 0
    typed = rest[before : len(rest) - after].replace(HIDDEN, "")
    return address, secret[:before] + typed.strip() + (secret[-after:] if after else "")
