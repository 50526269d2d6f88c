"""Connects the window with protocol.Connection: effects in, events out. All of it happens in threads of its own."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, assert_never

from client import servers
from client.window.events import (
    Broken,
    Cancel,
    CloseLink,
    Event,
    KeepServer,
    Kept,
    NotConnected,
    OpenLink,
    Replied,
    Send,
    Tag,
)
from protocol.client import is_last
from protocol.connection import Connection, Event as Reply
from protocol.errors import ConnectionFailed, ConnectionLost, Gpt2dError
from protocol.keys import Address, read_secret

LinkEffect: TypeAlias = OpenLink | CloseLink | Send | Cancel | KeepServer
MAX_EVENTS = 20_000
"""Number of events that may wait for the window; a server that sends more, and faster, is disconnected."""
REPLACED = 16
"""Number of requests that were replaced by others, and whose last answers are still waited for."""
TAKE = 500
"""Most events that one frame takes."""
CLOSE_S = 6.0
log = logging.getLogger(__name__)


class Link:
    """`do` and `events` never wait. `wake` is called, in another thread, whenever there is an event."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._effects: queue.SimpleQueue[LinkEffect | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        """Guards what follows: replies come in the connection's thread, effects in the link's, and the window takes
        events.
        """
        self._events: deque[Event] = deque()
        self.more = False
        """The last call of `events` has left something."""
        self._connection: Connection | None = None
        self._epoch = 0
        """Counts the connections, so that what an earlier one still says is ignored."""
        self._open: dict[Tag, tuple[int, int]] = {}
        """Tag -> (serial, request id) of the latest request, while it is open."""
        self._replaced: deque[int] = deque(maxlen=REPLACED)
        """Serials of earlier requests whose last answers are waited for."""
        self._serial = 0
        self._address: Address | None = None
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def do(self, effect: LinkEffect) -> None:
        self._effects.put(effect)

    def events(self) -> list[Event]:
        """Return what has happened since the last call, in order, and at most TAKE events."""
        with self._lock:
            taken = [self._events.popleft() for _ in range(min(TAKE, len(self._events)))]
            self.more = bool(self._events)
            return taken

    def close(self) -> None:
        self._effects.put(None)
        self._thread.join(CLOSE_S)

    # In the link's thread

    def _run(self) -> None:
        self._tell(Kept(servers.names()))
        while (effect := self._effects.get()) is not None:
            try:
                self._carry_out(effect)
            except Exception as e:  # a fault of the window itself: the user can still connect again
                log.exception("%s failed", type(effect).__name__)
                self._disconnect()
                self._tell(NotConnected(f"{type(e).__name__}: {e}"))
        self._disconnect()

    def _carry_out(self, effect: LinkEffect) -> None:
        match effect:
            case OpenLink():
                self._disconnect()
                self._connect(effect)
            case CloseLink():
                self._disconnect()
            case Send():
                self._send(effect)
            case Cancel(tag):
                self._cancel(tag)
            case KeepServer():
                self._keep()
            case _:
                assert_never(effect)

    def _connect(self, effect: OpenLink) -> None:
        epoch = self._epoch
        try:
            if effect.server_key or effect.key_file:
                key = read_secret(Path(effect.key_file).expanduser()).secret if effect.key_file else None
                self._address = Address.parse(effect.server, effect.server_key or None, key)
            else:
                self._address = servers.resolve(effect.server)
            self._connection = Connection(self._address.line(), on_lost=lambda: self._lost(epoch))
        except (ConnectionFailed, ValueError, RuntimeError) as e:  # the last where the home that ~ means is not found
            self._tell(NotConnected(str(e)))

    def _disconnect(self) -> None:
        with self._lock:
            connection = self._leave()
        if connection:
            connection.close()

    def _send(self, effect: Send) -> None:
        with self._lock:
            connection, epoch = self._connection, self._epoch
            earlier = self._open.pop(effect.tag, None)
            self._serial += 1
            serial = self._serial
            if earlier and effect.number:
                self._replaced.append(earlier[0])
            if connection:
                self._open[effect.tag] = serial, -1
        if connection is None:
            self._tell(Replied(effect.tag, ConnectionLost("there is no connection to a server"), 0.0, effect.number))
            return
        if earlier:
            connection.cancel(earlier[1])
        began = time.perf_counter()

        def on_event(reply: Reply) -> None:  # in the connection's thread
            took_ms = (time.perf_counter() - began) * 1000
            self._replied(epoch, serial, Replied(effect.tag, reply, took_ms, effect.number))

        try:
            request_id = connection.submit(effect.request, on_event, effect.timeout)
        except Gpt2dError as e:
            on_event(e)
            return
        with self._lock:
            if self._open.get(effect.tag) == (serial, -1):
                self._open[effect.tag] = serial, request_id

    def _cancel(self, tag: Tag) -> None:
        with self._lock:
            connection, (_, request_id) = self._connection, self._open.get(tag, (0, -1))
        if connection and request_id >= 0:
            connection.cancel(request_id)

    def _keep(self) -> None:
        if self._address is None:
            return
        name, trouble = "", ""
        if self._address.key:
            known = (name for name in servers.names() if self._address in servers.kept(name))
            try:
                name = next(known, "") or servers.keep(self._address)
            except OSError as e:
                trouble = f"the key cannot be kept in {servers.folder()}: {e.strerror}"
        self._tell(Kept(servers.names(), name, self._address.endpoint, trouble))

    # In whichever thread has something to say

    def _tell(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)
        self._wake()

    def _replied(self, epoch: int, serial: int, event: Replied) -> None:
        """Pass a reply on, unless another request or connection has taken the place of its own."""
        flooding = None
        with self._lock:
            if epoch != self._epoch:
                return
            if self._open.get(event.tag, (0, 0))[0] == serial:
                if is_last(event.event):
                    del self._open[event.tag]
            elif serial in self._replaced and is_last(event.event):
                self._replaced.remove(serial)
            else:
                return
            if len(self._events) < MAX_EVENTS:
                self._events.append(event)
            else:
                flooding = self._leave()
                self._events.append(NotConnected("the server sent more than this window can take"))
        if flooding:  # not closed here: this is its own thread
            threading.Thread(target=flooding.close, daemon=True).start()
        self._wake()

    def _lost(self, epoch: int) -> None:
        with self._lock:
            if epoch == self._epoch:
                self._events.append(Broken())
        self._wake()

    def _leave(self) -> Connection | None:
        """Forget the connection and what it has said; return it, to be closed. The lock is held."""
        connection, self._connection = self._connection, None
        self._epoch += 1
        self._open.clear()
        self._replaced.clear()
        self._events = deque(e for e in self._events if not isinstance(e, Replied | Broken | NotConnected))
        return connection
