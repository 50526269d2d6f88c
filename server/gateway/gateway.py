"""Loop of the process that answers, and its wiring: from the peers to the workers, and back.

One thread, one poller, no model library. Nothing here waits for a peer or a worker: control is answered at once, work
is handed to the worker that holds the model, and what a worker says is passed on to the peer that asked. Of models it
reads the configuration of the one alone that is to be loaded; a thread looks at all of them (listing.py).
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

import zmq

from protocol import codec, messages as m, sockets
from protocol.errors import BadRequest, Busy, Cancelled, DeadlineExceeded, Draining, Unauthorised, printable
from protocol.keys import CurveKeys, read_secret
from server.catalogue.catalogue import Catalogue
from server.config import Config
from server.gateway import faults, status
from server.gateway.auth import REVOKED, Guard, Keyring
from server.gateway.back import Back, Heard, Joined
from server.gateway.dispatch import Dispatch
from server.gateway.front import Front, Message
from server.gateway.listing import Listing
from server.gateway.memory import Memory
from server.gateway.repeats import Ration, Repeats
from server.gateway.replicas import Replica, Replicas
from server.gateway.sessions import DuplicateId, Open, Sessions
from server.gateway.supervisor import Supervisor
from server.gateway.systemd import ServiceManager
from server.launch.launcher import Launcher
from server.launch.local import LocalLauncher
from server.link import Beat, Pieces, Ready

if TYPE_CHECKING:
    from server.gateway.metrics import Metrics  # Prometheus' library is loaded where it is asked for only

log = logging.getLogger("gpt2d")

REST_TICK_MS = 100
"""Longest wait of the poller while nothing comes and nothing is to be done."""
TICK_MS = 20
"""Longest wait otherwise: peers could fill the memory meanwhile with bytes that make no whole message."""
BACKLOG_TICK_MS = 5
"""Longest wait when replies wait to be sent."""
LOOK_S = 0.05
"""Time between two looks at processes, keys and deadlines."""
TURN = 64
"""Number of messages taken from one socket before the other has its turn: a flood must not starve it."""
CLOSE_S = 10.0
CANCEL_GRACE_S = 5.0
DEADLINE_GRACE_S = 1.0
"""Time after a deadline until the gateway ends a request that its worker should have ended."""


class Gateway:
    """Answers peers, and starts and watches workers. Runs in one thread; `drain` may be called from others."""

    def __init__(self, config: Config, launcher: Launcher | None = None, metrics: Metrics | None = None) -> None:
        """Bind.

        Raises: zmq.ZMQError if the endpoint cannot be bound, RequestError for a preload that cannot be loaded or a
        worker address that cannot be bound, KeyFileError.
        """
        self._config, self._metrics = config, metrics
        self._catalogue = Catalogue(config.models_dir, config.hub_cache, allow_hub=config.allow_hub)
        self._listing = Listing(self._catalogue, config)
        preloads = [self._catalogue.parse(name) for name in config.preload]
        own_key = read_secret(config.key) if config.key else None
        keyring = Keyring(config.authorised_keys) if config.authorised_keys else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._guard = Guard(self._context, keyring)
        socket, monitor = sockets.gateway_socket(self._context, config.endpoint, own_key)
        self.endpoint = sockets.endpoint_of(socket)
        keys, local = CurveKeys.new(), LocalLauncher()
        self._back = Back(self._context, config.worker_address, keys)
        self._manager = ServiceManager()
        self._sessions = Sessions(config, socket)
        self._front = Front(socket, monitor, self._sessions, self._guard, encrypted=own_key is not None)
        self._replicas = Replicas(config, keys, self._back.endpoint, launcher or local, measurer=local)
        self._ration, self._repeats = Ration(self._guard.name), Repeats()
        self._dispatch = Dispatch(
            config, self._sessions, self._replicas, self._back, self._guard.administers, self._ration, metrics
        )
        self._supervisor = Supervisor(
            config, self._catalogue, self._replicas, self._sessions, self._back, self._dispatch
        )
        self._began = time.monotonic()
        self._server_id = secrets.token_hex(8)
        self._counts: Counter[str] = Counter()
        self._drain_by: float | None = None
        self._over = False
        self._memory = Memory()
        self._supervisor.preload(preloads)

    def drain(self, *, hurry: bool = True) -> None:
        """Take no new work and stop when the running streams have finished; called again to `hurry`, stop now.

        Signal-safe.
        """
        if self._drain_by is None:
            self._drain_by = time.monotonic() + self._config.drain_seconds
        elif hurry:
            self._over = True

    def run(self) -> None:
        """Serve until drained."""
        poller, resting = zmq.Poller(), zmq.Poller()
        own = (*self._front.sockets, *self._back.sockets, self._guard.socket, self._listing.woken)
        for socket in filter(None, own):
            poller.register(socket, zmq.POLLIN)
            resting.register(socket, zmq.POLLIN)
        if self._front.arrivals is not None:
            resting.register(self._front.arrivals, zmq.POLLIN)
        looked = 0.0
        self._manager.ready()
        try:
            while not self._over:
                if self._sessions.backlog:
                    poller.poll(BACKLOG_TICK_MS)
                elif self._sessions.idle and self._front.at_rest():
                    resting.poll(REST_TICK_MS)
                else:
                    poller.poll(TICK_MS)
                self._front.watch()
                self._guard.answer(self._front.watch)
                for message in self._front.receive(TURN):
                    self._on_message(message)
                self._list_models()
                for replica, heard in self._back.receive(self._replicas, TURN):
                    self._on_heard(replica, heard)
                self._sessions.flush()
                for entry in self._sessions.take_ended_early():
                    self._abandon(entry)
                self._front.cut()
                if time.monotonic() > looked + LOOK_S:
                    self._supervisor.watch()
                    self._watch_keys()
                    self._watch_idleness()
                    self._watch_clock()
                    self._report()
                    self._memory.look(self._front.ended)
                    looked = time.monotonic()
        finally:
            self._close()

    # From the peers

    def _on_message(self, message: Message) -> None:
        entry, request_id = None, None
        try:
            request = codec.decode_request(message.frame)
            request_id = request.id
            if message.takes_one_reply and isinstance(request, m.Generate | m.Load | m.Task) and request.stream:
                raise BadRequest("a REQ socket takes one reply to each request; use a DEALER for `stream`")
            if message.takes_one_reply and isinstance(request, m.Score) and request.texts is not None:
                raise BadRequest("a REQ socket takes one reply to each request; use a DEALER for `texts`")
            entry = self._sessions.admit(message.peer, message.fd, message.envelope, request, message.user)
            self._guard.check(message.user, request)
            self._on_request(entry, request)
        except Exception as e:  # noqa: BLE001 - whatever a request meets, it ends with an answer and the gateway goes on
            error = faults.for_client(e)
            if isinstance(error, Busy):
                name = self._guard.name(message.user)
                self._repeats.warn(message.user, f"refused a request{f' of {name}' if name else ''}: {error}")
            if entry:
                self._sessions.fail(entry, error)
                return
            # Not under the id of a request that is still open: that one will have its own last reply.
            known = error.request_id if request_id is None else request_id
            about = None if isinstance(e, DuplicateId) else known
            failure = m.Failure(id=about, code=error.code, message=str(error))
            self._sessions.refuse(message.peer, message.envelope, failure)

    def _on_request(self, entry: Open, request: m.AnyRequest) -> None:
        self._counts[codec.type_of(request)] += 1
        if entry.owner.user and isinstance(request, m.Load | m.Task | m.Unload):
            self._ration.info(entry.owner.user, f"asked to {codec.type_of(request)} {printable(request.model)}")
        entry.owner.requests[codec.type_of(request)] += 1
        match request:
            case m.Generate() | m.Tokenize() | m.Score():
                self._refuse_when_draining()
                self._dispatch.begin(entry, request)
            case m.Load():
                self._refuse_when_draining()
                self._supervisor.load(entry, request)
            case m.Measure():
                self._refuse_when_draining()
                self._supervisor.measure(entry, request)
            case m.Calibrate():
                self._refuse_when_draining()
                self._supervisor.calibrate(entry, request)
            case m.Unload():
                self._supervisor.unload(entry, request)
            case m.Cancel():
                found = self._cancel(self._sessions.of_peer(entry.peer, request.target))
                self._sessions.reply(entry, m.CancelSent(id=None, found=found))
            case m.Hello():
                log.debug("hello from %r", request.client[:64])
                role = self._guard.role(entry.owner.user) or "generate"
                self._sessions.reply(entry, status.server_info(self._server_id, role, self._config))
            case m.Ping():
                draining = self._drain_by is not None
                self._sessions.reply(
                    entry, status.pong(self._server_id, self._began, self._replicas, draining=draining)
                )
            case m.Models():
                self._listing.ask(entry.key)
            case m.GetStats():
                self._sessions.reply(entry, self._stats(entry))

    def _stats(self, entry: Open) -> m.Stats:
        """Return the counts of all, for a key that may not administrate those of its own requests."""
        if self._guard.role(entry.owner.user) == "admin":
            return status.stats(self._began, self._sessions, self._counts, self._replicas)
        return status.own_stats(self._began, self._sessions, entry.owner, self._replicas)

    def _list_models(self) -> None:
        """Answer those that asked for the models, if these have been looked at meanwhile."""
        for key, look in self._listing.take():
            entry = self._sessions.by_key(key)
            if entry is None:  # its peer has gone
                continue
            if look.error:
                self._sessions.fail(entry, faults.for_client(look.error))
            else:
                self._sessions.reply(entry, status.model_list(look.models, look.packed, self._replicas))

    def _refuse_when_draining(self) -> None:
        if self._drain_by is not None:
            raise Draining("the server is stopping and takes no new work")

    def _cancel(self, target: Open | None) -> bool:
        if target is None or not isinstance(target.request, m.Generate | m.Score | m.Load | m.Task):
            return False
        self._abandon(target)
        target.cancelled = target.cancelled or time.monotonic()
        if isinstance(target.request, m.Load | m.Task):
            self._sessions.fail(target, Cancelled(f"the {codec.type_of(target.request)} was cancelled"))
        return True

    def _abandon(self, entry: Open) -> None:
        """Stop the work that a request began: it was cancelled, or its peer vanished."""
        self._dispatch.cancel(entry)
        self._supervisor.abandon(entry)

    # From the workers

    def _on_heard(self, replica: Replica, heard: Heard) -> None:
        try:
            if isinstance(heard, Exception):
                raise heard
            if isinstance(heard, Joined):
                self._supervisor.connected(replica, heard.routing_id, heard.fd)
            elif isinstance(heard, Beat):
                replica.beat = heard
            elif isinstance(heard, Pieces):
                for piece in heard.pieces:
                    self._dispatch.deliver(replica, piece)
            elif heard.id is not None:
                self._dispatch.deliver(replica, heard)
            else:
                if isinstance(heard, Ready | m.Measured | m.Calibrated):  # files of its model may be new
                    self._listing.changed()
                self._supervisor.heard(replica, heard)
        except Exception as e:  # noqa: BLE001 - a fault with one worker's message must not end the others
            self._supervisor.failed(replica, faults.for_client(e))

    # Time

    def _watch_keys(self) -> None:
        if lost := self._guard.lost():
            for entry in self._sessions.of_users(lost):
                admins = isinstance(entry.request, m.Load | m.Task | m.Unload)
                if admins or self._guard.role(entry.owner.user) is None:
                    self._abandon(entry)
                    self._sessions.fail(entry, Unauthorised(REVOKED))

    def _watch_idleness(self) -> None:
        idle_exit = self._config.idle_exit
        if idle_exit and self._drain_by is None and self._front.alone_s > idle_exit:
            log.info("nobody has been connected for %g s, so the daemon ends (--idle-exit)", idle_exit)
            self.drain()

    def _watch_clock(self) -> None:
        now = time.monotonic()
        for entry in self._sessions.all_open():
            if now > entry.deadline + (DEADLINE_GRACE_S if entry.replica else 0):
                self._abandon(entry)
                self._sessions.fail(entry, DeadlineExceeded(f"not done within {entry.request.deadline_ms} ms"))
            elif entry.cancelled and now > entry.cancelled + CANCEL_GRACE_S:
                self._sessions.fail(entry, Cancelled("cancelled; its worker did not answer"))
        if self._drain_by is None:
            return
        self._manager.stopping()
        self._supervisor.drain()
        if (not self._sessions.all_open() and not self._sessions.backlog) or now > self._drain_by + CANCEL_GRACE_S:
            self._over = True
        elif now > self._drain_by:
            for entry in self._sessions.all_open():  # again at each look: its worker's queue may have been full
                self._cancel(entry)

    def _report(self) -> None:
        """Report the state to the service manager and to Prometheus."""
        replicas = self._replicas.models()
        states = dict.fromkeys(f"{r.name} {r.state}" for r in replicas)
        self._manager.moving(f"{self.endpoint}: {', '.join(states) or 'no model'}")
        if self._metrics:
            beats = {
                (*r.way, str(r.number)): r.beat or Beat(id=None, rss_bytes=r.rss_bytes) for r in replicas if r.ready
            }
            self._metrics.look(beats, self._sessions, self._supervisor)

    def _close(self) -> None:
        for entry in self._sessions.all_open():
            self._sessions.fail(entry, Draining("the server has stopped"))
        for replica in self._replicas.all():
            self._replicas.stop(replica)
        give_up = time.monotonic() + CLOSE_S
        while self._replicas.all() and time.monotonic() < give_up:
            self._replicas.ended()
            time.sleep(0.01)
        self._replicas.close()
        self._listing.close()
        self._back.close()
        self._guard.close()
        self._front.close()
        self._context.term()
