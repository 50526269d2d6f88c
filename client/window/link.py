"""protocol.Connection <-> the window: effects in, events out. Everything here happens in threads of its own."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

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
)
from protocol.connection import Connection, Event as Reply
from protocol.errors import Gpt2dError
from protocol.keys import Address, read_secret
from protocol.messages import Progress, Tokens

LinkEffect = OpenLink | CloseLink | Send | Cancel | KeepServer
MAX_EVENTS = 20_000
"""Events that the window has not taken yet; a server that sends more faster is left."""
TAKE = 500
"""Events that one frame takes over at most."""
CLOSE_S = 6.0


class Link:
    """`do` and `events` never wait. `wake` is called, in another thread, whenever there is an event."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._effects: queue.SimpleQueue[LinkEffect | None] = queue.SimpleQueue()
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()  # the events come from two threads and leave in a third
        self._connection: Connection | None = None
        self._address: Address | None = None
        self._open: dict[str, tuple[int, int]] = {}
        """Tag -> (serial, request id) of the latest request."""
        self._serial = 0
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)
        self._thread.start()

    def do(self, effect: LinkEffect) -> None:
        self._effects.put(effect)

    def events(self) -> list[Event]:
        """What has happened since, in order; a part of it where that is much."""
        with self._lock:
            return [self._events.popleft() for _ in range(min(TAKE, len(self._events)))]

    @property
    def more(self) -> bool:
        """`events` has left something."""
        return bool(self._events)

    def close(self) -> None:
        self._effects.put(None)
        self._thread.join(CLOSE_S)

    # In the link's thread

    def _run(self) -> None:
        self._tell(Kept(servers.names()))
        while (effect := self._effects.get()) is not None:
            match effect:
                case OpenLink():
                    self._disconnect()
                    self._connect(effect)
                case CloseLink():
                    self._disconnect()
                case Send():
                    self._send(effect)
                case Cancel(tag):
                    if self._connection and tag in self._open:
                        self._connection.cancel(self._open[tag][1])
                case KeepServer():
                    self._keep()
        self._disconnect()

    def _connect(self, effect: OpenLink) -> None:
        try:
            if effect.server_key or effect.key_file:
                key = read_secret(Path(effect.key_file).expanduser()).secret if effect.key_file else None
                self._address = Address.parse(effect.server, effect.server_key or None, key)
            else:
                self._address = servers.resolve(effect.server)
            self._connection = Connection(self._address.line(), on_lost=lambda: self._tell(Broken()))
        except (ValueError, RuntimeError) as e:  # RuntimeError: the key file's ~ is nobody's home
            self._tell(NotConnected(str(e)))

    def _disconnect(self) -> None:
        self._open.clear()
        if self._connection:
            connection, self._connection = self._connection, None
            connection.close()

    def _send(self, effect: Send) -> None:
        connection = self._connection
        if connection is None:
            return
        if effect.tag in self._open:
            connection.cancel(self._open[effect.tag][1])
        self._serial += 1
        serial, began = self._serial, time.perf_counter()

        def on_event(reply: Reply) -> None:  # in the connection's thread
            if connection is self._connection and self._open.get(effect.tag, (0, 0))[0] == serial:
                if not isinstance(reply, Progress | Tokens):
                    self._open.pop(effect.tag, None)
                self._tell(Replied(effect.tag, reply, (time.perf_counter() - began) * 1000))

        self._open[effect.tag] = serial, -1
        try:
            request_id = connection.submit(effect.request, on_event, effect.timeout)
        except Gpt2dError as e:
            on_event(e)
            return
        if self._open.get(effect.tag, (0, 0))[0] == serial:
            self._open[effect.tag] = serial, request_id

    def _keep(self) -> None:
        if self._address and self._address.key and self._address not in servers.kept():
            try:
                servers.keep(self._address)
            except OSError:
                return  # it works all the same; the next time the line is needed again
            self._tell(Kept(servers.names()))

    def _tell(self, event: Event) -> None:
        """Keep an event for the window; where it has not taken MAX_EVENTS, they are dropped and the server is left."""
        with self._lock:
            if len(self._events) >= MAX_EVENTS:
                self._events.clear()
                event = NotConnected("the server sent more than this window can take")
                connection, self._connection = self._connection, None
                if connection:  # not closed here: this may be its own thread
                    threading.Thread(target=connection.close, daemon=True).start()
            self._events.append(event)
        self._wake()
