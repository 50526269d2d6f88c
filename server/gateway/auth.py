"""Authorisation: the keys that may talk to the daemon, their roles, and the answers to ZeroMQ's questions (ZAP).

The gateway's thread answers, so that no handler can die without the gateway; and a socket that demands one
(ZAP_ENFORCE_DOMAIN) admits nobody where there is none. https://rfc.zeromq.org/spec/27/
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import zmq
from zmq.utils import z85

from protocol import messages as m, sockets
from protocol.errors import Unauthorised
from protocol.keys import KeyFileError, Role, check_owned, read_public
from server.gateway.repeats import Repeats

log = logging.getLogger("gpt2d")

REVOKED = "this key is not authorised any more"
OTHER, KEY = -1, -2
"""Kinds of refusals besides the protocol errors of libzmq."""
MAX_KEYS = 1000
"""Most keys that are read: each is looked at twenty times a second, in the gateway's thread."""
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR}
"""Errors of the machine, which say nothing about the folder."""


UNNUMBERED = 0
"""Number of all connections where there are no keys."""


class Keyring:
    """Public keys of a folder: files NAME.pub. Used by the gateway's thread only."""

    def __init__(self, folder: Path) -> None:
        """Raises: KeyFileError if the folder or a key cannot be used."""
        self._folder = folder
        self._full = False
        """Whether there are more keys than are read, which has been logged."""
        self._stamp = self._look()
        self._known: dict[str, tuple[str, Role]] = {}
        for name in self._stamp:
            self._add(self._known, name)

    def role(self, key: str) -> Role | None:
        """Return the role of a public key; None if it may not talk."""
        return self._known[key][1] if key in self._known else None

    def name(self, key: str) -> str:
        if key in self._known:
            return self._known[key][0]
        return f"unknown key {hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def lost(self) -> set[str]:
        """Read the folder again if it changed; return the keys that may do less than before. Never raises.

        A file that cannot be read authorises nobody, nor does a folder that others could change.
        """
        before = self._known
        try:
            stamp = self._look()
        except OSError:
            return set()  # an error of the machine, not of the folder
        except KeyFileError as e:
            if before:
                log.warning("nobody is authorised now: %s", e)
            stamp = {}
        if stamp == self._stamp:
            return set()
        known: dict[str, tuple[str, Role]] = {}
        for name in stamp:
            try:
                self._add(known, name)
            except KeyFileError as e:
                log.warning("not authorised: %s", e)
            except OSError:
                return set()
        self._known, self._stamp = known, stamp
        changed = [name for key, (name, role) in known.items() if before.get(key) != (name, role)]
        lost = before.keys() - known.keys()
        for words, names in (("authorised", changed), ("revoked", [before[key][0] for key in lost])):
            if names:
                log.info("%s: %s", words, ", ".join(sorted(names)))
        return lost | {key for key in known if self._less(before.get(key), known[key])}

    @staticmethod
    def _less(before: tuple[str, Role] | None, now: tuple[str, Role]) -> bool:
        return before is not None and before[1] == "admin" and now[1] != "admin"

    def _add(self, known: dict[str, tuple[str, Role]], name: str) -> None:
        try:
            role, key = read_public(self._folder / name)
        except KeyFileError as e:
            if isinstance(e.__cause__, OSError) and e.__cause__.errno in PASSING:
                raise e.__cause__ from None
            raise
        if key in known:
            raise KeyFileError(f"{self._folder / name} holds the same key as {known[key][0]}.pub")
        known[key] = name.removesuffix(".pub"), role

    def _look(self) -> dict[str, tuple[int, ...]]:
        """Return the files of keys, each with what changes when the file does.

        Raises: KeyFileError if the folder cannot be used, OSError for an error of the machine.
        """
        try:
            check_owned(self._folder, 0o022)
            found: dict[str, tuple[int, ...]] = {}
            with os.scandir(self._folder) as entries:
                keys = sorted(
                    (e for e in entries if e.name.endswith(".pub") and not e.name.startswith(".")), key=lambda e: e.name
                )
            if len(keys) > MAX_KEYS and not self._full:
                log.warning(
                    "%s holds %d keys, more than %d: %s and what follows are not authorised",
                    self._folder,
                    len(keys),
                    MAX_KEYS,
                    keys[MAX_KEYS].name,
                )
            self._full = len(keys) > MAX_KEYS
            for entry in keys[:MAX_KEYS]:
                with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                    s = entry.stat(follow_symlinks=False)
                    found[entry.name] = (s.st_mtime_ns, s.st_size, s.st_ino, s.st_mode, s.st_uid)
            return found
        except OSError as e:
            if e.errno in PASSING:
                raise
            raise KeyFileError(f"the folder of authorised keys {self._folder} cannot be read: {e.strerror}") from None


class Refusals:
    """Logs who was refused."""

    def __init__(self, *, keyed: bool) -> None:
        self._mismatch = "it has no key" if keyed else "it has a key, and this server has none"
        self._repeats = Repeats()

    def handshake(self, error: int) -> None:
        """Log a handshake that broke the protocol; those that were refused by their key have been logged already."""
        known: dict[int, str] = {
            zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: self._mismatch,
            zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has another server's key",
        }
        kind = error if error in known else OTHER
        self._repeats.warn(kind, f"refused a peer: {known.get(error, 'it does not speak ZMTP as it should')}")

    def key(self, what: str) -> None:
        """Log a key that is not authorised."""
        self._repeats.warn(KEY, f"refused {what}")


class Guard:
    """Says of each new connection whether its key is authorised, and of each message with which role.

    The user id of a connection's messages is its number and its key. Without a keyring, whoever reaches the socket is
    an admin. Used by the gateway's thread only.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring | None) -> None:
        """Create the socket that answers, before the gateway's socket, which asks."""
        self._keyring = keyring
        self.refusals = Refusals(keyed=keyring is not None)
        self.socket = None if keyring is None else sockets.zap_socket(context)
        self.admitted = UNNUMBERED - 1 if keyring is None else 0
        """Number of the connection that was admitted last."""

    def answer(self, watch: Callable[[], None]) -> None:
        """Answer what ZeroMQ has asked meanwhile. `watch()` notes the connections that were made before each answer."""
        while self.socket is not None and self._keyring is not None and sockets.readable(self.socket):
            # [route, empty, version, request id, domain, address, identity, mechanism, credentials...]
            frames = self.socket.recv_multipart()
            watch()
            route = frames[0]
            version, request_id = frames[2:4]
            address, mechanism = frames[5], frames[7]
            credentials = frames[8:]
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            known = self._keyring.role(key) is not None
            if not known:
                self.refusals.key(f"{shown(address.decode(errors='replace'))}: {self._keyring.name(key)}")
            else:
                self.admitted += 1
            user = f"{self.admitted} {key}".encode()
            verdict = [b"200", b"OK", user] if known else [b"400", b"this key is not authorised", b""]
            self.socket.send_multipart([route, b"", version, request_id, *verdict, b""], zmq.NOBLOCK)

    def sender(self, frame: zmq.Frame) -> tuple[int, str]:
        """Return the number and the public key of a message's connection; UNNUMBERED, "" where there are no keys."""
        if self._keyring is None:
            return UNNUMBERED, ""
        number, key = sockets.user_of(frame).split(" ", 1)
        return int(number), key

    def name(self, user: str) -> str:
        """Return the name of a user's key; empty on a server without keys."""
        return "" if self._keyring is None else self._keyring.name(user)

    def administers(self, user: str) -> bool:
        """Return whether a user is an administrator among others who are not: where there are no keys, nobody is."""
        return self._keyring is not None and self._keyring.role(user) == "admin"

    def role(self, user: str) -> Role | None:
        """Return the role of a user; None if it may not talk, or no longer."""
        return "admin" if self._keyring is None else self._keyring.role(user)

    def check(self, user: str, request: m.AnyRequest) -> None:
        """Check that a user may do what it asks for. Raises: Unauthorised."""
        role = self.role(user)
        if role is None:
            raise Unauthorised(REVOKED)
        if role != "admin" and isinstance(request, m.Load | m.Task | m.Unload):
            raise Unauthorised(
                "this key may generate, but not load, measure, calibrate or unload; whoever runs the server can, or "
                "can make it an admin's"
            )

    def lost(self) -> set[str]:
        """Return the users that may do less than at the last call."""
        return set() if self._keyring is None else self._keyring.lost()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


def shown(address: str) -> str:
    """Return a peer's address as its owner knows it: a socket of both families maps IPv4's into IPv6."""
    return address.removeprefix("::ffff:")
