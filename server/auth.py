"""Who may talk to the daemon, and as what: the authorised keys, and the answers to ZeroMQ's questions about them (ZAP).

The gateway's thread answers, so that there is no handler that could die without the gateway; and a socket that demands one
(ZAP_ENFORCE_DOMAIN) admits nobody where there is none. https://rfc.zeromq.org/spec/27/
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from pathlib import Path

import zmq
from zmq.utils import z85

from protocol import messages as m, sockets
from protocol.errors import Unauthorised
from protocol.keys import KeyFileError, Role, read_public

log = logging.getLogger("gpt2d")

LOOK_S = 0.2
"""How often the folder is looked at."""
QUIET_S = 1.0
"""A refusal is logged at most this often, with how many there were meanwhile."""


class Keyring:
    """The public keys of a folder: files NAME.pub. Used by the gateway's thread only."""

    def __init__(self, folder: Path) -> None:
        """Raises: KeyFileError if the folder or a key cannot be used."""
        self._folder = folder
        self._stamp = self._look()
        self._known: dict[str, tuple[str, Role]] = {}
        for file in self._files():
            self._add(file)
        self._looked = time.monotonic()

    def __len__(self) -> int:
        return len(self._known)

    def role(self, key: str) -> Role | None:
        """None: this public key may not talk."""
        return self._known[key][1] if key in self._known else None

    def name(self, key: str) -> str:
        return self._known[key][0] if key in self._known else f"unknown key {hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def lost(self) -> set[str]:
        """Read the folder again if it changed; return the keys that are not authorised any more. Never raises.

        What cannot be read authorises nobody.
        """
        if time.monotonic() < self._looked + LOOK_S:
            return set()
        self._looked = time.monotonic()
        before = self._known
        try:
            stamp = self._look()
            if stamp == self._stamp:
                return set()
            self._known, self._stamp = {}, stamp
            for file in self._files():
                try:
                    self._add(file)
                except KeyFileError as e:
                    log.warning("not authorised: %s", e)
        except KeyFileError as e:
            if before:
                log.warning("nobody is authorised now: %s", e)
            self._known, self._stamp = {}, ()
        changed = [name for key, (name, role) in self._known.items() if before.get(key) != (name, role)]
        lost = before.keys() - self._known.keys()
        for words, names in (("authorised", changed), ("revoked", [before[key][0] for key in lost])):
            if names:
                log.info("%s: %s", words, ", ".join(sorted(names)))
        return set(lost)

    def _add(self, file: Path) -> None:
        role, key = read_public(file)
        if key in self._known:
            raise KeyFileError(f"{file} holds the same key as {self._known[key][0]}.pub")
        self._known[key] = file.stem, role

    def _files(self) -> list[Path]:
        try:
            return sorted(self._folder.glob("*.pub"))
        except OSError as e:
            raise KeyFileError(f"the folder of authorised keys {self._folder} cannot be read: {e.strerror}") from None

    def _look(self) -> tuple[object, ...]:
        """What changes when a key does. Raises: KeyFileError if the folder cannot be used."""
        try:
            mode = self._folder.stat().st_mode
            with os.scandir(self._folder) as entries:
                stats = sorted((e.name, s.st_mtime_ns, s.st_size, s.st_ino, s.st_mode) for e in entries if (s := e.stat()))
        except OSError as e:
            raise KeyFileError(f"the folder of authorised keys {self._folder} cannot be read: {e.strerror}") from None
        if os.name == "posix" and mode & 0o022:
            raise KeyFileError(
                f"the folder of authorised keys {self._folder} can be changed by others than its owner; make it yours alone with: chmod 700 {self._folder}"
            )
        return (mode, *stats)


class Refusals:
    """Logs who was turned away, without letting a flood of them fill the log."""

    def __init__(self, *, keyed: bool) -> None:
        self._mismatch = "it has no key" if keyed else "it has a key, and this server has none"
        self._last, self._more = 0.0, 0

    def handshake(self, kind: int, value: int) -> None:
        """A handshake failed, by the socket's monitor; those that Zap refused were told of already."""
        if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            known: dict[int, str] = {
                zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: self._mismatch,
                zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has another server's key",
            }
            self.add(f"a peer: {known.get(value, 'it does not speak ZMTP as it should')}")

    def add(self, what: str) -> None:
        now = time.monotonic()
        if now < self._last + QUIET_S:
            self._more += 1
            return
        log.warning("refused %s%s", what, f" (and {self._more} more before)" if self._more else "")
        self._last, self._more = now, 0


class Guard:
    """Answers for each new connection whether its key is authorised, and for each message as what. Used by the gateway's thread only.

    The key of a connection is the user id of its messages. Without a keyring, whoever reaches the socket is an admin.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring | None) -> None:
        """Made before the gateway's socket, which asks."""
        self._keyring = keyring
        self.refusals = Refusals(keyed=keyring is not None)
        self.socket = sockets.zap_socket(context) if keyring else None

    def answer(self) -> None:
        """Answer what ZeroMQ has asked meanwhile."""
        while self.socket and self._keyring and sockets.readable(self.socket):
            route, _, version, request_id, _domain, address, _identity, mechanism, *credentials = self.socket.recv_multipart()
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            known = self._keyring.role(key) is not None
            if not known:
                self.refusals.add(f"{address.decode(errors='replace')}: {self._keyring.name(key)}")
            verdict = [b"200", b"OK", key.encode()] if known else [b"400", b"this key is not authorised", b""]
            self.socket.send_multipart([route, b"", version, request_id, *verdict, b""], zmq.NOBLOCK)

    def user(self, frame: zmq.Frame) -> str:
        """Whose message it is: a public key, or empty where there are none."""
        return sockets.user_of(frame) if self._keyring else ""

    def check(self, user: str, request: m.AnyRequest) -> None:
        """Raises: Unauthorised if the user may not, or may not any more."""
        role = self._keyring.role(user) if self._keyring else "admin"
        if role is None:
            raise Unauthorised("this key is not authorised any more")
        if role != "admin" and isinstance(request, m.Load | m.Unload):
            raise Unauthorised("this key may generate, but not load or unload; whoever runs the server can, or can make it an admin's")

    def role(self, user: str) -> Role:
        return (self._keyring.role(user) if self._keyring else "admin") or "generate"

    def lost(self) -> set[str]:
        """The users that were authorised and are not any more, since the last call."""
        return self._keyring.lost() if self._keyring else set()

    def close(self) -> None:
        if self.socket:
            self.socket.close()
