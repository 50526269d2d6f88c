"""Who may talk to the daemon, and as what: the authorised keys, and the answers to ZeroMQ's questions about them (ZAP).

The gateway's thread answers, so that there is no handler that could die without the gateway; and a socket that demands one
(ZAP_ENFORCE_DOMAIN) admits nobody where there is none. https://rfc.zeromq.org/spec/27/
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import time
from pathlib import Path

import zmq
from zmq.utils import z85

from protocol import messages as m, sockets
from protocol.errors import Unauthorised
from protocol.keys import KeyFileError, Role, check_owned, read_public

log = logging.getLogger("gpt2d")

REVOKED = "this key is not authorised any more"
OTHER, KEY = -1, -2
"""Kinds of refusals beside the protocol errors of libzmq."""
QUIET_S = 1.0
"""A kind of refusal is logged at most this often, with how many there were meanwhile."""
MAX_KEYS = 1000
"""Each is looked at twenty times a second, in the gateway's thread."""
PASSING = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR}
"""Troubles of the machine, which say nothing about the folder."""


class Keyring:
    """The public keys of a folder: files NAME.pub. Used by the gateway's thread only."""

    def __init__(self, folder: Path) -> None:
        """Raises: KeyFileError if the folder or a key cannot be used."""
        self._folder = folder
        self._full = False
        """There are more keys than are read; it has been logged."""
        self._stamp = self._look()
        self._known: dict[str, tuple[str, Role]] = {}
        for name in self._stamp:
            self._add(self._known, name)

    def role(self, key: str) -> Role | None:
        """None: this public key may not talk."""
        return self._known[key][1] if key in self._known else None

    def name(self, key: str) -> str:
        return (
            self._known[key][0] if key in self._known else f"unknown key {hashlib.sha256(key.encode()).hexdigest()[:8]}"
        )

    def lost(self) -> set[str]:
        """Read the folder again if it changed; return the keys that may do less than before, or nothing. Never raises.

        A file that cannot be read authorises nobody, nor does a folder that others could change.
        """
        before = self._known
        try:
            stamp = self._look()
        except OSError:
            return set()  # the machine's trouble, not the folder's
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
        """The files of keys, with what changes when one does.

        Raises: KeyFileError if the folder cannot be used, OSError where the machine is in trouble.
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
                with contextlib.suppress(FileNotFoundError):  # it went while we looked
                    s = entry.stat(follow_symlinks=False)
                    found[entry.name] = (s.st_mtime_ns, s.st_size, s.st_ino, s.st_mode, s.st_uid)
            return found
        except OSError as e:
            if e.errno in PASSING:
                raise
            raise KeyFileError(f"the folder of authorised keys {self._folder} cannot be read: {e.strerror}") from None


class Refusals:
    """Logs who was turned away, without letting a flood of them fill the log: each kind by itself, or one would hide another."""

    def __init__(self, *, keyed: bool) -> None:
        self._mismatch = "it has no key" if keyed else "it has a key, and this server has none"
        self._kinds: dict[int, tuple[float, int]] = {}
        """Kind -> when it was last logged, and how many more there were since."""

    def handshake(self, error: int) -> None:
        """A handshake broke the protocol; those that were refused by their key were told of already."""
        known: dict[int, str] = {
            zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: self._mismatch,
            zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has another server's key",
        }
        self._add(
            error if error in known else OTHER, f"a peer: {known.get(error, 'it does not speak ZMTP as it should')}"
        )

    def key(self, what: str) -> None:
        """A key that is not authorised."""
        self._add(KEY, what)

    def _add(self, kind: int, what: str) -> None:
        now = time.monotonic()
        last, more = self._kinds.get(kind, (-QUIET_S, 0))
        if now < last + QUIET_S:
            self._kinds[kind] = last, more + 1
            return
        log.warning("refused %s%s", what, f" (and {more} more before)" if more else "")
        self._kinds[kind] = now, 0


class Guard:
    """Answers for each new connection whether its key is authorised, and for each message as what. Used by the gateway's thread only.

    The key of a connection is the user id of its messages. Without a keyring, whoever reaches the socket is an admin.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring | None) -> None:
        """Made before the gateway's socket, which asks."""
        self._keyring = keyring
        self.refusals = Refusals(keyed=keyring is not None)
        self.socket = None if keyring is None else sockets.zap_socket(context)

    def answer(self) -> None:
        """Answer what ZeroMQ has asked meanwhile."""
        while self.socket is not None and self._keyring is not None and sockets.readable(self.socket):
            route, _, version, request_id, _domain, address, _identity, mechanism, *credentials = (
                self.socket.recv_multipart()
            )
            key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and credentials else ""
            known = self._keyring.role(key) is not None
            if not known:
                self.refusals.key(f"{address.decode(errors='replace')}: {self._keyring.name(key)}")
            verdict = [b"200", b"OK", key.encode()] if known else [b"400", b"this key is not authorised", b""]
            self.socket.send_multipart([route, b"", version, request_id, *verdict, b""], zmq.NOBLOCK)

    def user(self, frame: zmq.Frame) -> str:
        """Whose message it is: a public key, or empty where there are none."""
        return "" if self._keyring is None else sockets.user_of(frame)

    def role(self, user: str) -> Role | None:
        """None: this user may not talk, or may not any more."""
        return "admin" if self._keyring is None else self._keyring.role(user)

    def check(self, user: str, request: m.AnyRequest) -> None:
        """Raises: Unauthorised if the user may not do that."""
        role = self.role(user)
        if role is None:
            raise Unauthorised(REVOKED)
        if role != "admin" and isinstance(request, m.Load | m.Measure | m.Unload):
            raise Unauthorised(
                "this key may generate, but not load, measure or unload; whoever runs the server can, or can make it an admin's"
            )

    def lost(self) -> set[str]:
        """The users that may do less than before, or nothing, since the last call."""
        return set() if self._keyring is None else self._keyring.lost()

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
