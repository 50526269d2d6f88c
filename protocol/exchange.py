"""The thread of a connection: a table of pending requests, their deadlines, and what a broken connection does to them.

The thread never blocks on anything but its line's poller. Events of a request are handed to the callback given with it,
in the thread; the last event of each request is a result or an error. The route: `submit` -> inbox -> line ->
`_receive`. A callback that raises costs its own request alone: the exception is logged, unless it is Cancelled, and the
request is cancelled.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import msgspec

from protocol import codec, messages as m
from protocol.allowance import Allowance
from protocol.errors import (
    BadRequest,
    Busy,
    Cancelled,
    Closed,
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
from protocol.line import Line
from protocol.parameters import missing
from protocol.pulse import Pulse

Event: TypeAlias = m.AnyReply | Gpt2dError
State: TypeAlias = Literal["connecting", "ready", "lost", "closed"]

REFUSED_S, GONE_S = 1.0, 3.0
"""Seconds that a request waits where it is certain that no server of ours is there, in case that one is starting: from
the beginning, and where one was there before. Where it is not certain a request waits up to its own timeout.
"""
DEADLINE_GRACE_S = 2.0
"""Seconds after its deadline that a request waits for the server's own answer to it."""
TICK_MS, IDLE_MS = 50, 10_000
"""How often the times are looked at, while something waits to be sent, and while nothing is pending."""
SENT_MS = 100
"""The same while all that is pending was sent: it waits for seconds, and the pieces of a stream come faster."""
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
    """A line to a server, and its thread. The first four methods may be called from any thread."""

    def __init__(self, address: Address, on_lost: Callable[[], None]) -> None:
        """Start connecting. Raises: ValueError for an endpoint that nothing can connect to, ConnectionFailed."""
        self._endpoint = address.endpoint
        self._on_lost = on_lost
        self.state: State = "connecting"
        self.info: m.ServerInfo | None = None
        """Answer of the server to `hello`, from the latest connection."""
        self._line = Line(address)
        self._pulse = Pulse()
        self._inbox: queue.SimpleQueue[Pending | int] = queue.SimpleQueue()
        self._ids = itertools.count(1)  # its next() is atomic
        self._closing = False
        self._pending: dict[int, Pending] = {}
        self._waiting: dict[int, Pending] = {}
        """Those that wait for their turn, in their order."""
        self._allowance = Allowance()
        self._missing: dict[str, Any] = {}
        """Settings that the server does not have and would ignore, and their defaults."""
        self._hello_id = self._ping_id = -1
        self._lost_until: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"gpt2d {self._endpoint}", daemon=True)
        self._thread.start()

    def submit(self, request: m.AnyRequest, on_event: Callable[[Event], None], timeout: float, *, wait: bool) -> int:
        """Send a request, or let it wait for its turn; return its id. See Connection.submit."""
        request_id = next(self._ids)
        request = msgspec.structs.replace(request, id=request_id)
        now = time.monotonic()
        waits = wait and isinstance(request, m.Generate | m.OfText)
        self._inbox.put(Pending(request, on_event, waits, now + timeout, now, now))
        self._line.wake()
        if self.state == "closed":
            self._refuse_inbox()
        return request_id

    def cancel(self, request_id: int) -> None:
        """Ask the server to cancel a request, which still gets its last event. May be called by a finaliser."""
        self._inbox.put(request_id)
        self._line.wake(wait=False)  # the thread looks by itself while anything is pending

    def stop(self) -> None:
        """End the thread, without waiting for it. May be called by a finaliser."""
        self._closing = True
        self._line.wake(wait=False)  # the thread looks by itself now and then

    def join(self) -> None:
        """Wait for up to CLOSE_S until the thread has ended, unless this is the thread itself."""
        self._line.wake()
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=CLOSE_S)

    # Everything below runs in the connection's thread.

    def _run(self) -> None:
        try:
            while not self._closing:
                self._line.poll(self._tick_ms())
                self._take_inbox()
                self._watch()
                self._receive()
                self._send_waiting()
                self._line.flush()
                self._check_times()
        finally:
            self.state = "closed"
            self._fail_all(Closed("this client was closed"))
            self._line.close()

    def _tick_ms(self) -> int:
        if self._line.tries or (self._pending and (self._waiting or self.state != "ready")):
            return TICK_MS
        return SENT_MS if self._pending else IDLE_MS

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
        if ignored := self._ignored(pending.request):
            self._finish(pending.request.id, BadRequest(ignored))
            return
        left_ms = max(1, int((pending.expires - time.monotonic()) * 1000))
        request = msgspec.structs.replace(pending.request, deadline_ms=left_ms)
        try:
            data = codec.encode(request)
        except (BadRequest, RecursionError) as e:
            self._finish(request.id, BadRequest(*e.args))
        else:
            pending.sent = True
            self._allowance.take(request)
            self._line.send(data)

    def _ignored(self, request: m.AnyRequest) -> str:
        """Say which settings of a request the server does not have; empty: none."""
        if self.info is None or not isinstance(request, m.Generate):
            return ""
        names = [name for name, default in self._missing.items() if getattr(request, name) != default]
        if not names:
            return ""
        return (
            f"the server has gpt2d {self.info.version}, which would ignore {', '.join(names)}; "
            "leave that out, or update the server"
        )

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
        self._line.send(codec.encode(request))

    def _watch(self) -> None:
        for change in self._line.changes():
            self._ended()
            if change == "open":
                self._hello_id = next(self._ids)
                self._pulse.asked(ping=False)
                self._send_quietly(m.Hello(id=self._hello_id))
            elif change == "cut":
                self._cut()

    def _ended(self) -> None:
        """Forget what was asked over a connection before."""
        self._hello_id = self._ping_id = -1
        self._pulse.ended()

    def _cut(self) -> None:
        """Note that the connection has ended that had worked."""
        for pending in self._waiting.values():
            pending.unconnected = time.monotonic()
        self._lost_until = self._pulse.lost_until()
        self.state = "lost"
        self._lost()

    def _receive(self) -> None:
        for frames in self._line.received():
            self._pulse.heard()
            try:
                if len(frames) != 1:
                    raise BadRequest(f"{len(frames)} frames instead of one")
                reply = codec.decode_reply(frames[0])
            except VersionMismatch as e:
                self._line.reason.blame(e, certain=True)
                self._fail_all(e)
                continue
            except BadRequest as e:
                self._line.reason.other(certain=True)
                self._fail_all(NotGpt2d(f"{self._line.reason.error}: {e}"))
                continue
            if reply is not None:
                self._dispatch(reply)

    def _dispatch(self, reply: m.AnyReply) -> None:
        if reply.id == self._hello_id:
            self._greeted(reply)
        elif reply.id == self._ping_id:
            self._ping_id = -1
            self._pulse.answered()
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
            self._line.reason.blame(error, certain=isinstance(error, VersionMismatch))
            self._fail_all(error)
            self._line.retry()
            return
        if not isinstance(reply, m.ServerInfo):
            self._line.reason.other(certain=True)
            return
        restarted = self.info is not None and self.info.server_id != reply.server_id
        self.info, self.state = reply, "ready"
        self._line.greeted()
        self._lost_until = None
        self._pulse.greeted()
        self._allowance.renew(reply.limits)
        self._missing = missing(reply.parameters)
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
                given_up = self._line.reason.certain and now > pending.unconnected + (
                    GONE_S if self.info else REFUSED_S
                )
                if given_up or now > pending.expires:
                    self._finish(request_id, self._line.reason.error)
            elif now > pending.expires + (DEADLINE_GRACE_S if pending.sent else 0):
                self._finish(request_id, DeadlineExceeded(_late(pending)))
        self._line.check_times()
        if self._lost_until is not None and now > self._lost_until:
            self._lost_until = None
            lost = ConnectionLost(f"the connection to {self._endpoint} broke and could not be made again")
            self._fail_sent(self._line.reason.error if isinstance(self._line.reason.error, ServerStuck) else lost)
        waiting = self.state == "ready" and any(p.sent for p in self._pending.values())
        match self._pulse.look(waiting=waiting):
            case "ask":
                self._ping_id = next(self._ids)
                self._pulse.asked(ping=True)
                self._send_quietly(m.Ping(id=self._ping_id))
            case "stuck":
                self._give_up()

    def _give_up(self) -> None:
        """Give up a connection over which nothing comes; another may do."""
        stuck = "does not answer any more; is the line cut, or the server stuck?"
        self._fail_sent(ServerStuck(f"the server on {self._endpoint} is connected but {stuck}"))
        self._line.give_up()
        self._ended()
        self._cut()

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
    """Hand an event to the request's callback; return what it raised, which is logged where it is a fault."""
    try:
        pending.on_event(event)
    except Cancelled as e:
        return e
    except BaseException as e:  # a caller's code, whose faults must not end the thread that serves others
        log.exception("on_event of request %d raised at %s", pending.request.id, type(event).__name__)
        return e
    return None
