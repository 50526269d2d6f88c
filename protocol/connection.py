"""A connection to one server, as its users hold it: it ends with its last reference."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable

from protocol import messages as m
from protocol.errors import BadRequest, Closed
from protocol.exchange import Event, Exchange, State
from protocol.keys import DEFAULT_ENDPOINT, Address

__all__ = ["LONGEST_S", "Connection", "Event", "State"]

LONGEST_S = 86_400.0
"""Longest time that a request may take: a day, the wire's limit."""


class Connection:
    """A connection to one server. All methods may be called from any thread."""

    def __init__(
        self,
        endpoint: str = DEFAULT_ENDPOINT,
        *,
        server_key: str | None = None,
        key: str | None = None,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Start connecting. `endpoint` may be a connect line, which carries both keys; see protocol.keys for these.

        `on_lost` is called in the connection's thread when a working connection breaks, whether or not anything waits
        for an answer. What it refers to lives as long as the connection.

        Raises: ValueError if the endpoint or a key is malformed, or the endpoint one that nothing can connect to;
        ConnectionFailed where this process can open no more files.
        """
        address = Address.parse(endpoint, server_key, key)
        self.endpoint = address.endpoint
        self._exchange = Exchange(address, on_lost)
        self._process = os.getpid()
        # The thread refers to the exchange alone, so that a connection that is dropped can end it.
        self._end = weakref.finalize(self, self._exchange.stop)

    @property
    def state(self) -> State:
        return self._exchange.state

    @property
    def info(self) -> m.ServerInfo | None:
        """Answer of the server to `hello`, from the latest connection."""
        return self._exchange.info

    def submit(
        self,
        request: m.AnyRequest,
        on_event: Callable[[Event], None],
        timeout: float | None = None,
        *,
        wait: bool = False,
    ) -> int:
        """Send a request; return its id. `timeout` (seconds) goes along as its deadline; None: a day.

        With `wait`, a request for a loaded model waits for its turn, in the order of submission, where the server takes
        no more of this client's requests for now; the time counts in the timeout. Otherwise that is answered by Busy.

        `on_event` is called in the connection's thread and must not block. Its last call has a Result or an error. An
        exception that it raises ends this request alone, whose last event is then Cancelled, and is logged unless it is
        itself Cancelled.

        Raises: Closed in a process that was forked off the one that made this connection, BadRequest for a timeout that
        is no time.
        """
        self.check_process()
        return self._exchange.submit(request, on_event, seconds(timeout), wait=wait)

    def cancel(self, request_id: int) -> None:
        """Ask the server to cancel a request, which still gets its last event. May be called by a finaliser.

        In a process that was forked off, it does nothing: the request is the other process's.
        """
        if self._is_here:
            self._exchange.cancel(request_id)

    def close(self) -> None:
        """End the thread, and wait for up to 5 s until it has ended; what is pending fails with Closed.

        Called by a callback, it does not wait: the thread ends once the callback has returned. In a process that was
        forked off, it does nothing.
        """
        if self._is_here:
            self._end()
            self._exchange.join()

    def check_process(self) -> None:
        """Raises: Closed in a process that was forked off the one that made this connection: nothing comes here."""
        if not self._is_here:
            raise Closed("this client was made before a fork and has no thread in this process; make a new one here")

    @property
    def _is_here(self) -> bool:
        return os.getpid() == self._process


def seconds(timeout: float | None) -> float:
    """Return a timeout within the wire's limit; None and infinity are a day. Raises: BadRequest."""
    if timeout is None:
        return LONGEST_S
    wrong = BadRequest(f"timeout must be a number of seconds or None, got {timeout!r}")
    if isinstance(timeout, str | bytes | bytearray | bool):  # of which float() would take some
        raise wrong
    try:
        value = float(timeout)
    except (TypeError, ValueError):
        raise wrong from None
    if math.isnan(value) or value < 0:
        raise BadRequest(f"timeout must be at least 0 seconds, got {timeout!r}")
    return min(value, LONGEST_S)
