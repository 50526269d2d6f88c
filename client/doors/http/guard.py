"""Who may come in: hosts, origins, tokens, and how much is read of a request.

A page of a browser can reach loopback. It is kept out by the name that it calls: only addresses, `localhost` and the
names that were given are answered, and DNS can be made to say anything only of names (DNS rebinding). Nor is anything
answered that a page of another origin asks, unless that origin was given (CORS).
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from client.doors.http.errors import Refused
from client.doors.http.leaving import Left
from protocol.keys import KeyFileError, Role, check_owned

BEARER = re.compile(r"bearer +(\S+) *", re.IGNORECASE)
MAX_BODY_BYTES = 4 << 20
BODY_S = 30.0
"""Seconds in which a body has to arrive."""
MAX_TOKENS_BYTES = 256 << 10
LEAST_CHARACTERS = 16
"""Characters of a token that nobody guesses."""


@dataclass(frozen=True)
class Guard:
    """What is asked of each request before it is read."""

    hosts: Collection[str] = ()
    """Names that are answered beside addresses and `localhost`."""
    origins: Collection[str] = ()
    tokens: Mapping[bytes, Role] = field(default_factory=dict, repr=False)
    """Role of each token's SHA-256. Without any, whoever comes may generate."""

    def check(self, request: Request, *, open_to_all: bool = False) -> Role:
        """Return what the sender may do. Raises: Refused."""
        host = request.headers.get("host", "")
        if not self._answers(host):
            raise Refused(
                403, f"the host {host[:100]!r} is not answered here; start gpt2d-http with --host-name for it"
            )
        origin = request.headers.get("origin")
        if origin is not None and origin not in self.origins:
            raise Refused(403, f"the origin {origin[:100]!r} is not allowed; start gpt2d-http with --cors for it")
        if open_to_all or not self.tokens:
            return "generate"
        sent = BEARER.fullmatch(request.headers.get("authorization", ""))
        digest = hashlib.sha256(sent[1].encode() if sent else b"").digest()
        found = [role for known, role in self.tokens.items() if hmac.compare_digest(known, digest)]
        if not found:
            raise Refused(
                401,
                "a token is needed: send the header `Authorization: Bearer TOKEN`, with one of the file that "
                "gpt2d-http was started with (--tokens)",
                "authentication_error",
                "invalid_api_key",
            )
        return found[0]

    def _answers(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
            if name == "localhost" or name in self.hosts:
                return True
            return bool(ipaddress.ip_address(name))
        except ValueError:
            return False


async def read_body(request: Request) -> bytes:
    """Return the body. Raises: Refused where it is too large or does not arrive; Left."""
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise Refused(413, f"the body is over the limit of {MAX_BODY_BYTES} bytes; send it in parts")
    except ClientDisconnect:
        raise Left from None
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_S:.0f} s") from None
    return bytes(body)


def read_tokens(file: Path) -> dict[bytes, Role]:
    """Return the role of each token's SHA-256, of a file that has a line `ROLE TOKEN` for each.

    Raises: KeyFileError, which repeats no token.
    """
    try:
        check_owned(file, 0o077)
        text = file.read_bytes()[:MAX_TOKENS_BYTES].decode("ascii")
    except OSError as e:
        raise KeyFileError(f"the tokens {file} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError:
        raise KeyFileError(f"{file} does not hold tokens: it is not ASCII text") from None
    roles: dict[str, Role] = {role: role for role in get_args(Role)}
    tokens = {}
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or words[0] not in roles or len(words[1]) < LEAST_CHARACTERS:
            raise KeyFileError(
                f"{file}: line {number} must be `ROLE TOKEN`, with the role {' or '.join(roles)} and a token of "
                f"{LEAST_CHARACTERS} characters or more"
            )
        tokens[hashlib.sha256(words[1].encode()).digest()] = roles[words[0]]
    if not tokens:
        raise KeyFileError(f"{file} holds no tokens: write a line `ROLE TOKEN` for each into it")
    return tokens
