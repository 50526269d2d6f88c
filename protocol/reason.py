"""Why there is no connection, as far as that is known: the error of requests that cannot be sent."""

from __future__ import annotations

import errno
import socket
from typing import Literal

from protocol import sockets
from protocol.errors import ConnectionFailed, ConnectionLost, KeyRefused, NoServer, NotGpt2d, RequestError, ServerStuck
from protocol.keys import DEFAULT_ENDPOINT, Address
from protocol.programs import command

HANG_UPS = 3
"""Number of connections in a row that must be hung up on before that is certain to be no accident of the line."""


class Reason:
    """The error of requests that cannot be sent. `certain`: it is known that trying again soon does not help."""

    def __init__(self, address: Address, *, named: bool) -> None:
        """Begin with nothing known. `named`: the endpoint's host is a name."""
        self._endpoint = address.endpoint
        self._own = "CURVE" if address.key else "NULL"
        self._hang_ups = 0
        self._closes = False
        """Whether it is a ZeroMQ server, which closes connections before it answers."""
        self.met = False
        """Whether the server has answered once."""
        self.certain = False
        self.error: ConnectionFailed | RequestError = NoServer(
            f"the name in {self._endpoint} was not looked up in time; its address may do"
            if named
            else f"there is no answer from {self._endpoint}; is it on, and the way there open?"
        )

    def greeted(self) -> None:
        """Note that the server has answered."""
        self.met, self.certain = True, False
        self._hang_ups, self._closes = 0, False

    def blame(self, error: ConnectionFailed | RequestError, *, certain: bool) -> None:
        self.error, self.certain = error, certain

    def cut(self) -> None:
        """Note that the connection broke that had worked."""
        self.blame(ConnectionLost(f"the connection to {self._endpoint} was cut"), certain=False)

    def not_taken(self, found: OSError) -> None:
        """Note why no address takes a connection."""
        if isinstance(found, socket.gaierror):
            unknown = NoServer(f"the name in {self._endpoint} cannot be looked up: {found.strerror}")
            self.blame(unknown, certain=found.errno != socket.EAI_AGAIN)
        elif found.errno == errno.ECONNREFUSED:
            self.refused()
        elif self.met:
            cut = ConnectionLost(f"the connection to {self._endpoint} was cut: {found.strerror}")
            self.blame(cut, certain=False)
        else:
            self.blame(NoServer(f"{self._endpoint} cannot be reached: {found.strerror}"), certain=False)

    def refused(self) -> None:
        """Note that its machine refuses connections to this port."""
        place = [] if self._endpoint == DEFAULT_ENDPOINT else ["--endpoint", self._endpoint]
        start = command("gpt2d-server", *place) if sockets.is_loopback(self._endpoint) else "gpt2d-server"
        nobody = f"nobody listens on {self._endpoint}; start a server there with `{start}`"
        if self.met:
            nobody = (
                f"nobody listens on {self._endpoint} any more; start the server again, or the tunnel that led to it"
            )
        self.blame(NoServer(nobody), certain=True)

    def accepted(self) -> None:
        """Note that a connection was made, over which nothing has come yet."""
        if isinstance(self.error, NotGpt2d | KeyRefused) or self._closes:
            return
        silent = f"{self._endpoint} accepts connections but sends nothing; is the server stopped or stuck?"
        if self.met:
            silent = (
                f"the connection to {self._endpoint} was cut; another was made, but nothing comes over it: is the line "
                "still cut, or the server stuck?"
            )
        self.blame(ServerStuck(silent), certain=False)

    def key_refused(self) -> None:
        refused = f"the server on {self._endpoint} refuses this key; its operator can authorise the key"
        self.blame(KeyRefused(refused), certain=True)

    def other(self, *, certain: bool) -> None:
        """Note that another program than ours answers."""
        self.blame(NotGpt2d(f"something answers on {self._endpoint}, but it is not a gpt2d server"), certain=certain)

    def failed(self) -> None:
        """Note a handshake that broke the protocol, by another program or by a server with, or without, keys."""
        if not isinstance(self.error, KeyRefused):
            self.other(certain=False)

    def hung_up(self, *, shaken: bool) -> None:
        """Note that a connection was ended before the server's first answer; `shaken`: after the handshake."""
        if self.met:
            return
        if shaken:
            self._closes = True
            what = f"the server on {self._endpoint} closes connections before it answers"
            self.blame(ServerStuck(f"{what}; it may be full, or have cut this address off for a while"), certain=False)
            return
        self._hang_ups += 1
        if not isinstance(self.error, NotGpt2d | KeyRefused) and not self._closes:
            what = f"something answers on {self._endpoint}, but it hangs up without a word: another program, a tunnel"
            cut = "with no server at its end, or a server that is full or has cut this address off"
            self.blame(NotGpt2d(f"{what} {cut}"), certain=False)
        self.certain = not self._closes and (self.certain or self._hang_ups >= HANG_UPS)

    def looked_into(self, found: Literal["silent", "other", "NULL", "CURVE"]) -> None:
        """Note what listens there, as `sockets.look_into` found."""
        if found == "other":
            self.other(certain=True)
        elif found == "CURVE" and self._own == "NULL":
            wants = f"the server on {self._endpoint} wants a key; use the connect line that it printed, or"
            self.blame(KeyRefused(f"{wants} server_key= and key="), certain=True)
        elif found == "NULL" and self._own == "CURVE":
            has_none = f"the server on {self._endpoint} has no keys; connect without one, or start the server"
            self.blame(KeyRefused(f"{has_none} with --key"), certain=True)
        elif found == "CURVE" and isinstance(self.error, NotGpt2d):  # it hung up without an error
            other = f"the server on {self._endpoint} has a different key than the one given; has it been set up again?"
            self.blame(KeyRefused(other), certain=self._hang_ups >= HANG_UPS)
