"""The thread of a connection, which owns one DEALER: a table of pending requests, their deadlines, reconnection.

The thread never blocks on anything but its poller. Events of a request are handed to the callback given with it, in the
thread; the last event of each request is a result or an error. The route: `submit` -> outbox -> socket -> `_receive`.
A callback that raises costs its own request alone: the exception is logged, and the request is cancelled.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
import zmq

from protocol import addresses, codec, messages as m, sockets
from protocol.allowance import Allowance
from protocol.errors import (
    BadRequest,
    Busy,
    Cancelled,
    Closed,
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    Gpt2dError,
    NotGpt2d,
    ServerRestarted,
    ServerStuck,
    VersionMismatch,
    from_code,
)
from protocol.keys import Address
from protocol.reason import Reason

Event: TypeAlias = m.AnyReply | Gpt2dError
State: TypeAlias = Literal["connecting", "ready", "lost", "closed"]

REFUSED_S, GONE_S = 1.0, 3.0
"""Seconds that a request waits where it is certain that no server of ours is there, in case that one is starting: from
the beginning, and where one was there before. Where it is not certain a request waits up to its own timeout.
"""
LOST_S, SILENT_S = 2.0, 4.0
LOST_AT_LEAST_S = 0.7
"""Seconds that the requests of a broken connection wait for the reconnection that shows what happened; less, down to
the last, where the server was silent before, so that they end within 5 s of its last message.
"""
CONNECT_TRIPS = 8
"""Round trips that a connection with keys takes, with two to spare: the same wait on a slow line is longer by these."""
QUIET_S = 1.2
"""Seconds of silence, while a request is open, after which the server is asked for a sign of life."""
STUCK_S, STUCK_MOST_S = 3.0, 8.0
STUCK_TRIPS = 5
"""Seconds within which a server that is not stuck answers that; as many round trips more; and the most of both, so that
it is noticed before the heartbeats give the connection up.
"""
DEADLINE_GRACE_S = 2.0
"""Seconds after its deadline that a request waits for the server's own answer to it."""
AGAIN_S = 1.0
"""Seconds before the next try, where the server refused the last one for good."""
KNOCK_S = 0.2
"""Seconds before the next try, where nobody took the connection."""
PROBE_S = 0.5
"""Seconds that a connection may be without a handshake before it is examined."""
TICK_MS, IDLE_MS = 50, 10_000
"""How often the times are looked at, while anything is pending and otherwise."""
RETRY_S, RETRY_MOST_S = 0.05, 1.0
"""Seconds before a request is sent again for which the server had no place, the first time and at most."""
CLOSE_S = 5.0

log = logging.getLogger(__name__)


@dataclass
class Pending:
    """A request that has no last event yet. Times are monotonic, in seconds."""

    request: m.AnyRequest
    on_event: Callable[[Event], None]
    waits: bool
    """Whether it waits for its turn where the server takes no more of this client's for now."""
    expires: float
    submitted: float
    unconnected: float
    """Time since when it waits for a connection."""
    sent: bool = False
    next_seq: int = 0
    refused: str = ""
    """Why the server had no place for it when it was sent last."""
    retry_s: float = RETRY_S
    retry_at: float = 0.0

    @property
    def timeout(self) -> float:
        return self.expires - self.submitted


class Exchange:
    """A socket and its thread. The first four methods may be called from any thread."""

    def __init__(self, address: Address, on_lost: Callable[[], None]) -> None:
        """Start connecting. Raises: ValueError for an endpoint that nothing can connect to, ConnectionFailed."""
        self._endpoint = address.endpoint
        self._on_lost = on_lost
        self.state: State = "connecting"
        self.info: m.ServerInfo | None = None
        """Answer of the server to `hello`, from the latest connection."""
        try:
            sockets.check_descriptors()
        except OSError as e:
            raise ConnectionFailed(
                f"no connection to {self._endpoint} can be opened: {e.strerror}; close other clients or files of this "
                "process, or allow it more (`ulimit -n`)"
            ) from None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket, self._monitor = sockets.client_socket(self._context, address)
        self._wake = sockets.Wake(self._context)
        self._target = self._endpoint
        """Endpoint that the socket connects to: with that address, once it was found."""
        self._look_up = addresses.LookUp(self._endpoint, self._wake.wake)
        self._knocks = addresses.is_name(self._endpoint)
        """Whether to look first for an address that takes a connection: for a name, or where nobody took the last."""
        self._reason = Reason(address, named=self._knocks)
        self._round_trip = 0.0
        """Seconds that the server's latest answers to hello and ping took; it falls slowly."""
        self._inbox: queue.SimpleQueue[Pending | int] = queue.SimpleQueue()
        self._ids = itertools.count(1)  # its next() is atomic
        self._closing = False
        self._pending: dict[int, Pending] = {}
        self._waiting: dict[int, Pending] = {}
        """Those that wait for their turn, in their order."""
        self._allowance = Allowance()
        self._outbox: deque[bytes] = deque()
        self._hello_id = self._ping_id = -1
        self._heard = self._asked = 0.0
        self._lost_until: float | None = None
        self._connected_at = 0.0
        self._shaken, self._probed = False, True
        """The latest connection's handshake was done; that connection was examined."""
        self._broke = False
        """The latest connection's handshake failed, though not for want of time."""
        self._again_at: float | None = None
        """Time to connect again, where libzmq has given up."""
        try:
            self._connect()
        except zmq.ZMQError as e:
            sockets.close_monitored(self._socket, self._monitor)
            self._wake.close()
            self._context.term()
            raise ValueError(f"{self._endpoint}: {e.strerror}") from None
        self._thread = threading.Thread(target=self._run, name=f"gpt2d {self._endpoint}", daemon=True)
        self._thread.start()

    def submit(self, request: m.AnyRequest, on_event: Callable[[Event], None], timeout: float, *, wait: bool) -> int:
        """Send a request, or let it wait for its turn; return its id. See Connection.submit."""
        request_id = next(self._ids)
        request = msgspec.structs.replace(request, id=request_id)
        now = time.monotonic()
        waits = wait and isinstance(request, m.Generate | m.OfText)
        self._inbox.put(Pending(request, on_event, waits, now + timeout, now, now))
        self._wake.wake()
        if self.state == "closed":
            self._refuse_inbox()
        return request_id

    def cancel(self, request_id: int) -> None:
        """Ask the server to cancel a request, which still gets its last event. May be called by a finaliser."""
        self._inbox.put(request_id)
        self._wake.wake(wait=False)  # the thread looks by itself while anything is pending

    def stop(self) -> None:
        """End the thread, without waiting for it. May be called by a finaliser."""
        self._closing = True
        self._wake.wake(wait=False)  # the thread looks by itself now and then

    def join(self) -> None:
        """Wait for up to CLOSE_S until the thread has ended, unless this is the thread itself."""
        self._wake.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=CLOSE_S)

    # Everything below runs in the connection's thread.

    def _run(self) -> None:
        poller = zmq.Poller()
        for readable in (self._monitor, self._wake.receiver):
            poller.register(readable, zmq.POLLIN)
        try:
            while not self._closing:
                poller.register(self._socket, zmq.POLLIN | zmq.POLLOUT if self._outbox else zmq.POLLIN)
                poller.poll(TICK_MS if self._pending or self._again_at else IDLE_MS)
                self._wake.clear()
                self._take_inbox()
                self._take_address()
                self._watch()
                self._receive()
                self._send_waiting()
                self._flush()
                self._check_times()
        finally:
            self.state = "closed"
            self._fail_all(Closed("this client was closed"))
            sockets.close_monitored(self._socket, self._monitor)
            self._wake.close()
            self._context.term()

    def _items(self) -> Iterator[Pending | int]:
        """Yield what other threads have handed in since the last time."""
        with contextlib.suppress(queue.Empty):
            while True:
                yield self._inbox.get_nowait()

    def _take_inbox(self) -> None:
        for item in self._items():
            if isinstance(item, Pending):
                self._pending[item.request.id] = item
                if item.waits:
                    self._waiting[item.request.id] = item
                elif self.state == "ready":
                    self._send(item)
            elif item in self._pending:
                if self._pending[item].sent:
                    self._send_quietly(m.Cancel(id=next(self._ids), target=item))
                else:
                    self._finish(item, from_code("cancelled", "cancelled before it was sent"))

    def _connect(self) -> None:
        """Connect, or look for an address and connect later. Raises: zmq.ZMQError if it cannot be tried."""
        if self._knocks:
            self._look_up.begin()
        else:
            sockets.connect(self._socket, self._target)

    def _take_address(self) -> None:
        """Connect to the address that takes a connection, if one was found meanwhile."""
        found = self._look_up.take()
        if isinstance(found, str):
            sockets.disconnect(self._socket, self._target)
            self._target = found
            sockets.connect(self._socket, found)
        elif found:
            self._again_at = time.monotonic() + KNOCK_S
            self._reason.not_taken(found)

    def _send_waiting(self) -> None:
        """Send those that wait for their turn, as far as the server takes them now, in their order."""
        now = time.monotonic()
        while self._waiting and self.state == "ready":
            pending = next(iter(self._waiting.values()))
            if now < pending.retry_at or not self._allowance.admits(pending.request):
                return
            del self._waiting[pending.request.id]
            self._send(pending)

    def _send(self, pending: Pending) -> None:
        left_ms = max(1, int((pending.expires - time.monotonic()) * 1000))
        request = msgspec.structs.replace(pending.request, deadline_ms=left_ms)
        try:
            self._outbox.append(codec.encode(request))
        except (BadRequest, RecursionError) as e:
            self._finish(request.id, BadRequest(*e.args))
        else:
            pending.sent = True
            self._allowance.take(request)
            self._flush()

    def _try_later(self, pending: Pending, why: str) -> None:
        """Let a request that the server had no place for wait again, before those that came after it."""
        self._allowance.free(pending.request.id)
        pending.sent, pending.next_seq = False, 0
        pending.refused = why
        pending.retry_at = time.monotonic() + pending.retry_s
        pending.retry_s = min(RETRY_MOST_S, 2 * pending.retry_s)
        self._waiting = {pending.request.id: pending} | self._waiting

    def _send_quietly(self, request: m.AnyRequest) -> None:
        """Send a request whose reply nobody waits for, or whose absence is noticed elsewhere."""
        self._outbox.append(codec.encode(request))
        self._flush()

    def _flush(self) -> None:
        """Send what can be sent; a burst that the socket cannot take waits here for its turn."""
        with contextlib.suppress(zmq.Again):
            while self._outbox and self._shaken:
                self._socket.send(self._outbox[0], zmq.NOBLOCK)
                self._outbox.popleft()

    def _watch(self) -> None:
        while event := sockets.next_event(self._monitor):
            kind, value = event
            if kind == zmq.EVENT_CONNECTED:
                self._connected_at, self._again_at = time.monotonic(), None
                self._probed = self._shaken = False
                self._broke = False
                self._reason.accepted()
            elif kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._shaken = True
                self._hello_id, self._asked = next(self._ids), time.monotonic()
                self._send_quietly(m.Hello(id=self._hello_id))
            elif kind == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._reason.key_refused()
                self._again_at = time.monotonic() + AGAIN_S
            elif kind & sockets.HANDSHAKE_FAILED and value != errno.EAGAIN:  # EAGAIN is a timeout
                self._broke = True
                if kind == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    self._again_at = time.monotonic() + AGAIN_S
                    self._reason.failed()
                self._start_probe()
            elif kind == zmq.EVENT_DISCONNECTED:
                self._disconnected()
            elif kind == zmq.EVENT_CLOSED and self.state != "ready":
                self._not_taken()

    def _not_taken(self) -> None:
        """Note that nobody took the connection. libzmq does not say why, so the next try asks the system itself."""
        if sockets.is_loopback(self._target):
            self._reason.refused()
        if self._knocks or not sockets.is_loopback(self._target):
            self._knocks = True
            sockets.disconnect(self._socket, self._target)
            self._again_at = time.monotonic() + KNOCK_S

    def _disconnected(self) -> None:
        if self.state == "ready":
            now = time.monotonic()
            for pending in self._waiting.values():
                pending.unconnected = now
            least = max(self._heard + SILENT_S, now + LOST_AT_LEAST_S)
            self._lost_until = min(now + LOST_S, least) + CONNECT_TRIPS * self._round_trip
            self.state = "lost"
            self._reason.cut()
            self._lost()
        elif self._shaken or self._broke or time.monotonic() < self._connected_at + PROBE_S:
            self._reason.hung_up()
            self._again_at = time.monotonic() + AGAIN_S  # libzmq gives a socket of another kind up
        self._shaken = False
        self._outbox.clear()  # it was meant for the connection that broke
        self._hello_id = self._ping_id = -1

    def _start_probe(self) -> None:
        if not self._probed:
            self._probed = True
            threading.Thread(target=self._probe, daemon=True).start()

    def _probe(self) -> None:
        """Find out why there is no handshake; runs in a thread of its own."""
        found = sockets.look_into(self._target)
        if not self._shaken:  # else it came after all
            self._reason.looked_into(found)

    def _receive(self) -> None:
        while sockets.readable(self._socket):
            frames = self._socket.recv_multipart(zmq.NOBLOCK)
            self._heard = time.monotonic()
            try:
                if len(frames) != 1:
                    raise BadRequest(f"{len(frames)} frames instead of one")
                reply = codec.decode_reply(frames[0])
            except VersionMismatch as e:
                self._reason.blame(e, certain=True)
                self._fail_all(e)
                continue
            except BadRequest as e:
                self._reason.other(certain=True)
                self._fail_all(NotGpt2d(f"{self._reason.error}: {e}"))
                continue
            if reply is not None:
                self._dispatch(reply)

    def _dispatch(self, reply: m.AnyReply) -> None:
        if reply.id == self._hello_id:
            self._greeted(reply)
        elif reply.id == self._ping_id:
            self._ping_id = -1
            self._measure_round_trip()
        elif reply.id is not None and (pending := self._pending.get(reply.id)):
            if reply.seq != pending.next_seq:
                self._send_quietly(m.Cancel(id=next(self._ids), target=reply.id))
                self._finish(reply.id, ConnectionLost(f"reply {pending.next_seq} was lost on the way"))
                return
            pending.next_seq += 1
            if isinstance(reply, m.Failure):
                error = from_code(reply.code, reply.message)
                if isinstance(error, Busy) and pending.waits and reply.seq == 0 and self._may_fit(pending):
                    self._try_later(pending, reply.message)
                else:
                    self._finish(reply.id, error)
            elif isinstance(reply, m.Result):
                self._finish(reply.id, reply)
            elif (fault := _deliver(pending, reply)) is not None:
                self._abandon(pending, fault)

    def _greeted(self, reply: m.AnyReply) -> None:
        self._hello_id = -1
        if isinstance(reply, m.Failure):
            error = from_code(reply.code, reply.message)
            self._reason.blame(error, certain=isinstance(error, VersionMismatch))
            self._fail_all(error)
            self._again_at = time.monotonic() + AGAIN_S
            return
        if not isinstance(reply, m.ServerInfo):
            self._reason.other(certain=True)
            return
        restarted = self.info is not None and self.info.server_id != reply.server_id
        self.info, self.state = reply, "ready"
        self._reason.greeted()
        self._lost_until = None
        self._measure_round_trip()
        self._allowance.renew(reply.limits)
        for pending in list(self._pending.values()):
            if pending.request.id in self._waiting:
                continue
            if not pending.sent:
                self._send(pending)
            elif restarted:
                self._finish(
                    pending.request.id,
                    ServerRestarted(f"the server on {self._endpoint} was restarted; this request is lost"),
                )
            else:
                self._finish(
                    pending.request.id,
                    ConnectionLost(f"the connection to {self._endpoint} broke; this request is lost"),
                )

    def _check_times(self) -> None:
        now = time.monotonic()
        for request_id, pending in list(self._pending.items()):
            if not pending.sent and self.state != "ready":
                given_up = self._reason.certain and now > pending.unconnected + (GONE_S if self.info else REFUSED_S)
                if given_up or now > pending.expires:
                    self._finish(request_id, self._reason.error)
            elif now > pending.expires + (DEADLINE_GRACE_S if pending.sent else 0):
                self._finish(request_id, DeadlineExceeded(_late(pending)))
        if not self._shaken and self.info is None and now > self._connected_at + PROBE_S:
            self._start_probe()
        if self._again_at is not None and now > self._again_at:
            self._again_at = None
            sockets.disconnect(self._socket, self._target)
            self._connect()
        if self._lost_until is not None and now > self._lost_until:
            self._lost_until = None
            lost = ConnectionLost(f"the connection to {self._endpoint} broke and could not be made again")
            self._fail_sent(self._reason.error if isinstance(self._reason.error, ServerStuck) else lost)
        waiting = self.state == "ready" and any(p.sent for p in self._pending.values())
        if self._ping_id < 0:
            if waiting and now > max(self._heard, self._asked) + QUIET_S:
                self._ping_id, self._asked = next(self._ids), now
                self._send_quietly(m.Ping(id=self._ping_id))
        elif self._heard > self._asked:
            self._ping_id = -1
        elif now > self._asked + min(STUCK_MOST_S, STUCK_S + STUCK_TRIPS * self._round_trip):
            self._give_up()

    def _give_up(self) -> None:
        """Give up a connection over which nothing comes, and make another: this one may not recover for long."""
        stuck = "does not answer any more; is the line cut, or the server stuck?"
        self._fail_sent(ServerStuck(f"the server on {self._endpoint} is connected but {stuck}"))
        sockets.disconnect(self._socket, self._target)
        self._disconnected()
        self._connect()

    def _measure_round_trip(self) -> None:
        self._round_trip = max(time.monotonic() - self._asked, 0.75 * self._round_trip)

    def _may_fit(self, pending: Pending) -> bool:
        """Return whether the server can ever have a place for a request: it is within its limits by itself."""
        limits = self.info.limits if self.info else None
        return limits is None or pending.request.cost <= limits.tokens

    def _finish(self, request_id: int, event: Event) -> None:
        if isinstance(event, Gpt2dError):
            event = type(event)(*event.args)  # each request raises an exception of its own
        self._waiting.pop(request_id, None)
        self._allowance.free(request_id)
        _deliver(self._pending.pop(request_id), event)

    def _abandon(self, pending: Pending, error: BaseException) -> None:
        """End a request whose callback has raised: nobody receives the rest of it."""
        self._send_quietly(m.Cancel(id=next(self._ids), target=pending.request.id))
        ended = Cancelled(f"cancelled, because its on_event raised {error!r}")
        ended.__cause__ = error
        self._allowance.free(pending.request.id)
        del self._pending[pending.request.id]
        _deliver(pending, ended)

    def _lost(self) -> None:
        try:
            self._on_lost()
        except BaseException:  # a caller's code, whose faults must not end the thread that serves others
            log.exception("on_lost of the connection to %s raised", self._endpoint)

    def _fail_sent(self, error: Gpt2dError) -> None:
        """Give up what was sent; the server cancels what came over a connection that has ended."""
        for request_id in [r for r, p in self._pending.items() if p.sent]:
            self._finish(request_id, error)

    def _fail_all(self, error: Gpt2dError) -> None:
        self._take_inbox()
        for request_id in list(self._pending):
            self._finish(request_id, error)

    def _refuse_inbox(self) -> None:
        """Refuse what was handed in after the connection's thread has ended; runs in any thread."""
        for item in self._items():
            if isinstance(item, Pending):
                _deliver(item, Closed("this client was closed"))


def _late(pending: Pending) -> str:
    """Say what has not happened in time."""
    if pending.sent:
        return f"no answer within {pending.timeout:g} s"
    if pending.refused:
        return f"the server had no place for it within {pending.timeout:g} s: {pending.refused}"
    return f"not sent within {pending.timeout:g} s: this client's earlier requests take all that the server allows it"


def _deliver(pending: Pending, event: Event) -> BaseException | None:
    """Hand an event to the request's callback; return what it raised, which is logged."""
    try:
        pending.on_event(event)
    except BaseException as e:  # a caller's code, whose faults must not end the thread that serves others
        log.exception("on_event of request %d raised at %s", pending.request.id, type(event).__name__)
        return e
    return None
