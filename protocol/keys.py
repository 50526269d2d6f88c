"""CURVE keys (https://rfc.zeromq.org/spec/26/): as text, in files, and in the one line that carries an address and its keys.

A key is 32 bytes; its text is Z85, 40 characters, as ZeroMQ takes it. A secret key's file holds that text and is its
owner's alone (mode 0600); a public key's file holds the role and the text: `generate 9k...`. A connect line is
`tcp://host:port#SERVER.SECRET`: the server's public and the client's secret key in base64url without padding (RFC 4648),
which no shell and no chat program changes. It is a secret as the key in it is.
"""

from __future__ import annotations

import base64
import os
import stat as stat_module
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import zmq
from zmq.utils import z85

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5757"
KEY_BYTES, Z85_CHARACTERS, MAX_FILE_BYTES = 32, 40, 1024
Role: TypeAlias = Literal["admin", "generate"]
"""`generate` may do all but load, measure and unload."""
MAX_TOLD = 40
"""Characters of a wrong endpoint that an error repeats: fewer than a key has."""


class KeyFileError(ValueError):
    """A key's file that is missing, malformed, or open to others. Never tells what is in it."""


@dataclass(frozen=True)
class CurveKeys:
    """A key pair, Z85 text."""

    public: str
    secret: str = field(repr=False)

    @staticmethod
    def new() -> CurveKeys:
        public, secret = zmq.curve_keypair()
        return CurveKeys(public.decode(), secret.decode())

    @staticmethod
    def of(secret: str) -> CurveKeys:
        """The pair of a secret key. Raises: ValueError if it is none."""
        return CurveKeys(zmq.curve_public(check_key(secret).encode()).decode(), secret)


@dataclass(frozen=True)
class Address:
    """Where a server is, and the keys to talk to it with; both are None, or neither."""

    endpoint: str
    server_key: str | None = None
    key: CurveKeys | None = None

    @staticmethod
    def parse(text: str, server_key: str | None = None, key: str | None = None) -> Address:
        """Read an endpoint or a connect line; `server_key` and `key` (Z85: public, secret) come before those of a line.

        Raises: ValueError, which repeats no key.
        """
        endpoint, line, fragment = text.partition("#")
        check_endpoint(endpoint)
        if line:
            server, dot, secret = fragment.partition(".")
            if not dot:
                raise ValueError(
                    f"{endpoint}#...: a connect line ends in two keys with a point between them; it may have been cut"
                )
            server_key, key = server_key or _from_line(server), key or _from_line(secret)
        if (server_key is None) != (key is None):
            raise ValueError("a server's key and a key of one's own are given together")
        if server_key is None or key is None:
            return Address(endpoint)
        return Address(endpoint, check_key(server_key), CurveKeys.of(key))

    def line(self) -> str:
        """What `parse` reads."""
        if self.server_key is None or self.key is None:
            return self.endpoint
        return f"{self.endpoint}#{_to_line(self.server_key)}.{_to_line(self.key.secret)}"


def check_endpoint(endpoint: str) -> str:
    """Return the endpoint if it is tcp://HOST:PORT (or ipc://PATH).

    Raises: ValueError.
    """
    try:
        parts = urlsplit(endpoint)
        plain = endpoint.isascii() and endpoint.isprintable() and " " not in endpoint and len(endpoint) < 256
        tcp = (
            parts.scheme == "tcp"
            and parts.hostname
            and parts.port is not None
            and not parts.path
            and "@" not in parts.netloc
        )
        good = plain and not parts.query and not parts.fragment and (tcp or (parts.scheme == "ipc" and endpoint[6:]))
    except ValueError:
        good = False
    if not good:
        told = repr(endpoint) if len(endpoint) <= MAX_TOLD else "this"  # it may be a connect line that lost its #
        raise ValueError(
            f"{told} is not an endpoint; one looks like {DEFAULT_ENDPOINT}, a connect line like {DEFAULT_ENDPOINT}#..."
        )
    return endpoint


def check_key(key: str) -> str:
    """Return the key if it is one. Raises: ValueError, without repeating it."""
    try:
        good = len(key) == Z85_CHARACTERS and len(z85.decode(key.encode("ascii"))) == KEY_BYTES
    except (ValueError, KeyError, ArithmeticError, struct.error):
        good = False
    if not good:
        raise ValueError(f"this is no key: one is {Z85_CHARACTERS} characters of Z85")
    return key


def write_secret(file: Path, keys: CurveKeys) -> None:
    """Write a secret key that only its owner can read. Raises: FileExistsError, OSError."""
    _write(file, keys.secret)


def read_secret(file: Path) -> CurveKeys:
    """Raises: KeyFileError."""
    text = _read(file, 0o077)
    try:
        return CurveKeys.of(text)
    except ValueError as e:
        raise KeyFileError(f"{file} holds no key: {e}") from None


def write_public(file: Path, public: str, role: Role) -> None:
    """Raises: FileExistsError, OSError."""
    _write(file, f"{role} {public}")


def read_public(file: Path) -> tuple[Role, str]:
    """Raises: KeyFileError."""
    role, _, key = _read(file, 0o022).partition(" ")
    for known in get_args(Role):
        if role == known:
            try:
                return known, check_key(key)
            except ValueError as e:
                raise KeyFileError(f"{file} holds no key: {e}") from None
    raise KeyFileError(
        f"{file} holds no key: a line `ROLE KEY` is expected, with a role of {' or '.join(get_args(Role))}"
    )


def check_owned(path: Path, forbidden: int, stat: os.stat_result | None = None) -> None:
    """Raises: KeyFileError if a file or folder is somebody else's, or its mode has a bit of `forbidden`; OSError."""
    if os.name != "posix":
        return
    stat = stat or path.stat()
    if stat.st_uid not in {0, os.geteuid()}:
        raise KeyFileError(f"{path} belongs to another user, who could change it")
    if stat.st_mode & forbidden:
        verb = "read" if forbidden & 0o044 else "changed"
        mode = 700 if stat_module.S_ISDIR(stat.st_mode) else 600
        raise KeyFileError(
            f"{path} can be {verb} by others than its owner; make it yours alone with: chmod {mode} {path}"
        )


def _write(file: Path, text: str) -> None:
    for parent in reversed(file.parents):
        if not parent.exists():
            parent.mkdir(mode=0o700)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as stream:
        stream.write(text + "\n")


def _read(file: Path, forbidden: int) -> str:
    """Read a short text file without waiting for what is none. Raises: KeyFileError."""
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as stream:  # a pipe would block
            stat = os.fstat(stream.fileno())
            if not stat_module.S_ISREG(stat.st_mode):
                raise KeyFileError(f"{file} holds no key: it is no file")
            check_owned(file, forbidden, stat)
            return stream.read(MAX_FILE_BYTES).decode("ascii").strip()
    except OSError as e:
        raise KeyFileError(f"the key {file} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError:
        raise KeyFileError(f"{file} holds no key") from None


def _to_line(key: str) -> str:
    return base64.urlsafe_b64encode(z85.decode(key.encode())).decode().rstrip("=")


def _from_line(text: str) -> str:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ValueError("the keys of the connect line are damaged; copy it again, whole")
    return z85.encode(raw).decode()
