"""CURVE keys (https://rfc.zeromq.org/spec/26/): as text, in files, and in the one line that carries an address and its
keys.

A key is 32 bytes; its text is Z85, 40 characters, as ZeroMQ takes it. A secret key's file holds that text, and only its
owner can read it (mode 0600); a public key's file holds the role and the text: `generate 9k...`. A connect line is
`tcp://host:port#SERVER.SECRET`: the server's public and the client's secret key in base64url without padding (RFC
4648), which no shell and no chat program changes. It is a secret, like the key in it.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import stat as stat_module
import struct
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias, get_args
from urllib.parse import urlsplit

import zmq
from zmq.utils import z85

DEFAULT_ENDPOINT = "tcp://127.0.0.1:5757"
KEY_BYTES, Z85_CHARACTERS = 32, 40
MAX_FILE_BYTES = 1024
Role: TypeAlias = Literal["admin", "generate"]
"""`generate` may do all but load, measure, calibrate and unload."""
HOST_PORT = re.compile(r"[^\s/:#@?]+:\d{1,5}|\[[^\s/#@?]+\]:\d{1,5}")
MAX_REPEATED = 40
"""Most characters of a wrong endpoint that an error repeats: fewer than a connect line's keys have."""


class KeyFileError(ValueError):
    """A key's file is missing, malformed, or open to others. The message never contains what is in it."""


@dataclass(frozen=True)
class CurveKeys:
    """A key pair, as Z85 text."""

    public: str
    secret: str = field(repr=False)

    @staticmethod
    def new() -> CurveKeys:
        public, secret = zmq.curve_keypair()
        return CurveKeys(public.decode(), secret.decode())

    @staticmethod
    def of(secret: str) -> CurveKeys:
        """Return the pair of a secret key. Raises: ValueError if it is not a key."""
        return CurveKeys(zmq.curve_public(check_key(secret).encode()).decode(), secret)


@dataclass(frozen=True)
class Address:
    """A server's endpoint, and the keys to talk to it with; both are None, or neither."""

    endpoint: str
    server_key: str | None = None
    key: CurveKeys | None = None

    @staticmethod
    def parse(text: str, server_key: str | None = None, key: str | None = None) -> Address:
        """Read an endpoint (HOST:PORT will do) or a connect line; `server_key` and `key` (Z85: public, secret) take
        precedence over its keys.

        Raises: ValueError, which repeats no key.
        """
        if not isinstance(text, str):  # as a variable that is not set
            wrong = f"an endpoint must be a text like {DEFAULT_ENDPOINT}, got {type(text).__name__}"
            raise ValueError(wrong)  # noqa: TRY004 - as of every wrong endpoint
        endpoint = text.partition("#")[0]
        if HOST_PORT.fullmatch(endpoint):
            text, endpoint = f"tcp://{text}", f"tcp://{endpoint}"
        check_endpoint(endpoint)
        if "#" in text:
            keys = text.removeprefix(f"{endpoint}#").split(".", 1)
            if len(keys) != 2:
                cut = "expected two keys separated by a dot; it may have been cut off"
                raise ValueError(f"{endpoint}#... is not a connect line: {cut}")
            server, secret = keys
            server_key, key = server_key or _from_line(server), key or _from_line(secret)
        if (server_key is None) != (key is None):
            raise ValueError("the server's key and your own key must be given together")
        if server_key is None or key is None:
            return Address(endpoint)
        return Address(endpoint, check_key(server_key), CurveKeys.of(key))

    def line(self) -> str:
        """Return the line that `parse` reads."""
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
        # A long one may be a connect line that lost its #.
        shown = repr(endpoint) if len(endpoint) <= MAX_REPEATED else "this"
        raise ValueError(
            f"{shown} is not an endpoint like {DEFAULT_ENDPOINT} or a connect line like {DEFAULT_ENDPOINT}#..."
        )
    return endpoint


def check_key(key: str) -> str:
    """Return the key, if it is valid. Raises: ValueError, without repeating it."""
    try:
        good = isinstance(key, str) and len(key) == Z85_CHARACTERS and len(z85.decode(key.encode("ascii"))) == KEY_BYTES
    except (ValueError, KeyError, ArithmeticError, struct.error):
        good = False
    if not good:
        raise ValueError(f"not a valid key: expected {Z85_CHARACTERS} Z85 characters")
    return key


def write_secret(file: Path, keys: CurveKeys) -> None:
    """Write a secret key to a file that only its owner can read. Raises: FileExistsError, OSError."""
    _write(file, keys.secret)


def read_secret(file: Path) -> CurveKeys:
    """Read a secret key. Raises: KeyFileError."""
    text = _read(file, 0o077)
    try:
        return CurveKeys.of(text)
    except ValueError as e:
        raise KeyFileError(f"{file} does not hold a key: {e}") from None


def read_line(file: Path) -> str:
    """Read a connect line, which is a secret like the key in it. Raises: KeyFileError."""
    return _read(file, 0o077)


def write_public(file: Path, public: str, role: Role) -> None:
    """Write a public key and its role. Raises: FileExistsError, OSError."""
    _write(file, f"{role} {public}")


def read_public(file: Path) -> tuple[Role, str]:
    """Read a role and a public key. Raises: KeyFileError."""
    words = _read(file, 0o022).split(" ", 1)
    for role in get_args(Role):
        if len(words) == 2 and words[0] == role:
            try:
                return role, check_key(words[1])
            except ValueError as e:
                raise KeyFileError(f"{file} does not hold a key: {e}") from None
    raise KeyFileError(
        f"{file} does not hold a key: expected a line `ROLE KEY`, with the role {' or '.join(get_args(Role))}"
    )


def check_owned(path: Path, forbidden: int, stat: os.stat_result | None = None) -> None:
    """Check who can reach a file or folder.

    Raises: KeyFileError if it belongs to another user, or its mode has a bit of `forbidden`; OSError.
    """
    if sys.platform == "win32":
        return
    stat = stat or path.stat()
    if stat.st_uid not in {0, os.geteuid()}:
        raise KeyFileError(f"{path} belongs to another user, who could change it")
    if stat.st_mode & forbidden:
        verb = "read" if forbidden & 0o044 else "changed"
        mode = 700 if stat_module.S_ISDIR(stat.st_mode) else 600
        raise KeyFileError(f"{path} can be {verb} by users other than its owner; to forbid that: chmod {mode} {path}")


def _write(file: Path, text: str) -> None:
    """Write a file that is not there yet: it appears when it is complete. Raises: FileExistsError, OSError."""
    for parent in reversed(file.parents):
        if not parent.exists():
            parent.mkdir(mode=0o700)
    try:
        _write_whole(file, text)
    except OSError as e:
        raise OSError(e.errno, e.strerror, str(file)) from None  # a full disk's names no file, or the draft


def _write_whole(file: Path, text: str) -> None:
    handle, draft = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # readable by its owner alone
    try:
        with os.fdopen(handle, "w", encoding="ascii") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        _move_to_new(Path(draft), file)
    finally:
        Path(draft).unlink(missing_ok=True)


def _move_to_new(draft: Path, file: Path) -> None:
    """Give a file its name, unless another has it. Raises: FileExistsError, OSError."""
    if os.name == "nt":
        draft.rename(file)
        return
    try:
        os.link(draft, file)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        if file.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        draft.rename(file)


def _without_waiting(file: str, flags: int) -> int:
    """Open a file as open() wants it, which closes it again where it is a folder. A pipe would block."""
    return os.open(file, flags | getattr(os, "O_NONBLOCK", 0))


def _read(file: Path, forbidden: int) -> str:
    """Read a short text file, without waiting if it is a pipe. Raises: KeyFileError."""
    try:
        with open(file, "rb", opener=_without_waiting) as stream:
            stat = os.fstat(stream.fileno())
            if not stat_module.S_ISREG(stat.st_mode):
                raise KeyFileError(f"{file} does not hold a key: it is not a regular file")
            check_owned(file, forbidden, stat)
            return stream.read(MAX_FILE_BYTES).decode("ascii").strip()
    except OSError as e:
        raise KeyFileError(f"the key {file} cannot be read: {e.strerror}") from e
    except UnicodeDecodeError:
        raise KeyFileError(f"{file} does not hold a key: it is not ASCII text") from None


def _to_line(key: str) -> str:
    return base64.urlsafe_b64encode(z85.decode(key.encode())).decode().rstrip("=")


def _from_line(text: str) -> str:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raw = b""
    if len(raw) != KEY_BYTES:
        raise ValueError("the keys of the connect line are damaged; copy the whole line again")
    return z85.encode(raw).decode()
