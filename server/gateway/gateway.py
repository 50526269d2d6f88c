"""Owns the ROUTER sockets: receive, check, admit, hand on; send replies. Imports no model library.

One thread, one poller. Nothing here waits for a peer or a worker: control is answered at once, work is handed to the
worker that holds the model, and what a worker says is passed on to the peer that asked. The only files it reads are small
ones: the config.json of each model, and what was measured of it.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import zmq

from protocol import codec, messages as m, sockets
from protocol.errors import (
    Busy,
    Cancelled,
    DeadlineExceeded,
    Draining,
    Internal,
    LoadFailed,
    RequestError,
    Unauthorised,
    WorkerDied,
)
from protocol.keys import CurveKeys, read_secret
from server import link
from server.catalogue.catalogue import Catalogue
from server.config import Config
from server.gateway import routing, status
from server.gateway.auth import REVOKED, Guard, Keyring
from server.gateway.connections import Connections
from server.gateway.replicas import Worker, Workers
from server.gateway.sessions import DuplicateId, Open, Sessions
from server.gateway.supervisor import Loads
from server.gateway.systemd import ServiceManager
from server.launch.launcher import Launcher
from server.launch.local import LocalLauncher
from server.link import Beat, ForWorker, FromWorker, Leave, Work

if TYPE_CHECKING:
    from server.gateway.metrics import Metrics  # Prometheus' library is loaded where it is asked for only

log = logging.getLogger("gpt2d")

TICK_MS, WATCHFUL_TICK_MS, BACKLOG_TICK_MS = 100, 20, 5
"""How long the poller waits: when nobody is connected; when somebody is, who could fill the memory meanwhile; when replies wait to be sent."""
LOOK_S = 0.05
"""How often processes and deadlines are looked at."""
TURN = 64
"""Messages taken from one socket before the other has its turn: a flood must not starve it."""
MAX_FRAMES, MAX_ENVELOPE_BYTES = 8, 1024
HOSTILE_FRAMES = 1000
"""A message of more is no mistake: its connection is cut."""
CLOSE_S = 10.0
CANCEL_GRACE_S = 5.0
DEADLINE_GRACE_S = 1.0
"""A worker ends its requests at their deadlines; the gateway does so for a worker that does not."""


class Gateway:
    def __init__(self, config: Config, launcher: Launcher | None = None, metrics: Metrics | None = None) -> None:
        """Bind.

        Raises: zmq.ZMQError if the endpoint cannot be bound, RequestError for a preload that makes no sense and where
        workers could not connect, KeyFileError.
        """
        self._config = config
        self._catalogue = Catalogue(config.models_dir, config.hub_cache, allow_hub=config.allow_hub)
        preloads = [self._catalogue.parse(name) for name in config.preload]
        own_key = read_secret(config.key) if config.key else None
        keyring = Keyring(config.authorised_keys) if config.authorised_keys else None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._guard = Guard(self._context, keyring)
        self._socket, self._monitor = sockets.gateway_socket(self._context, config.endpoint, own_key)
        keys = CurveKeys.new()
        try:
            self._workers_socket, self._workers_monitor = link.gateway_socket(
                self._context, config.worker_address, keys
            )
        except zmq.ZMQError as e:
            raise LoadFailed(f"--worker-address {config.worker_address}: cannot listen there: {e.strerror}") from None
        self._manager, self._metrics = ServiceManager(), metrics
        self._sessions = Sessions(config, self._socket)
        local = LocalLauncher()
        self._workers = Workers(
            config, keys, sockets.endpoint_of(self._workers_socket), launcher or local, measurer=local
        )
        self._loads = Loads(
            config, self._catalogue, self._workers, self._sessions, self._to_worker, self._try_elsewhere
        )
        self._connections = Connections(encrypted=own_key is not None)
        self._began = time.monotonic()
        self._server_id = secrets.token_hex(8)
        self._counts: Counter[str] = Counter()
        self._drain_by: float | None = None
        self._over = False
        self.endpoint = sockets.endpoint_of(self._socket)
        self._loads.preload(preloads)

    def drain(self) -> None:
        """Take no new work and stop when the running streams have finished; called again: stop now. Signal-safe."""
        if self._drain_by is None:
            self._drain_by = time.monotonic() + self._config.drain_seconds
        else:
            self._over = True

    def run(self) -> None:
        """Serve until drained."""
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor, self._workers_socket, self._workers_monitor, self._guard.socket):
            if socket:
                poller.register(socket, zmq.POLLIN)
        looked = 0.0
        self._manager.ready()
        try:
            while not self._over:
                poller.poll(
                    BACKLOG_TICK_MS if self._sessions.backlog else WATCHFUL_TICK_MS if self._connections else TICK_MS
                )
                self._watch_connections()
                self._guard.answer()
                self._receive_from_peers()
                self._receive_from_workers()
                self._sessions.flush()
                for entry in self._sessions.take_gone():
                    self._abandon(entry)
                self._cut_connections()
                if time.monotonic() > looked + LOOK_S:
                    self._loads.watch()
                    self._watch_keys()
                    self._watch_clock()
                    self._report()
                    looked = time.monotonic()
        finally:
            self._close()

    # From the peers

    def _watch_connections(self) -> None:
        while event := sockets.next_event(self._monitor):
            kind, value = event
            if kind == zmq.EVENT_ACCEPTED:
                self._connections.opened(value)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._connections.closed(value)
                self._sessions.drop_fd(value)
            else:
                self._guard.refusals.handshake(value)

    def _receive_from_peers(self) -> None:
        for _ in range(TURN):
            if not sockets.readable(self._socket):
                return
            frames, sizes = self._receive_message()
            try:
                fd = int(frames[-1].get(zmq.SRCFD))
            except zmq.ZMQError:  # a peer of ZMTP 1 or 2, of which nothing is known; an HTTP request can look like one
                continue
            # Looked at after each receipt, so that a file descriptor that was closed and used again is not mistaken.
            self._watch_connections()
            if len(sizes) > HOSTILE_FRAMES:
                self._connections.shut(fd)
            self._connections.delivered(fd, sizes)
            self._cut_connections()  # afterwards: what has been delivered is not unfinished
            small = sum(sizes[:-1]) <= MAX_ENVELOPE_BYTES and len(sizes) <= MAX_FRAMES
            if small and fd in self._connections and not self._sessions.has_given_up(frames[0].bytes):
                user = self._guard.user(frames[-1])
                self._on_frame(frames[0].bytes, fd, user, [f.bytes for f in frames[1:-1]], frames[-1].bytes)

    def _receive_message(self) -> tuple[list[zmq.Frame], list[int]]:
        """The first frames of a message, and the sizes of all that its sender sent: what nobody wants is not kept."""
        frames, sizes = [self._socket.recv(zmq.NOBLOCK, copy=False)], list[int]()  # the first is the peer's routing id
        while self._socket.get(zmq.RCVMORE):
            if len(sizes) < MAX_FRAMES:
                frames.append(self._socket.recv(zmq.NOBLOCK, copy=False))
                sizes.append(len(frames[-1]))
            else:
                sizes.append(len(self._socket.recv(zmq.NOBLOCK)))
        return frames, sizes

    def _cut_connections(self) -> None:
        for fd in self._connections.cut(lambda: sockets.readable(self._socket)):
            log.warning(
                "a connection was cut: it sent much without finishing a message, or nothing (descriptor %d)", fd
            )

    def _on_frame(self, peer: bytes, fd: int, user: str, envelope: list[bytes], frame: bytes) -> None:
        entry, request_id = None, None
        try:
            request = codec.decode_request(frame)
            request_id = request.id
            entry = self._sessions.admit(peer, fd, envelope, request, user)
            self._guard.check(user, request)
            self._on_request(entry, request)
        except Exception as e:  # noqa: BLE001 - whatever a request meets, it ends with an answer and the gateway goes on
            error = e if isinstance(e, RequestError) else _internal(e)
            if entry:
                self._sessions.fail(entry, error)
            else:
                about = None if isinstance(e, DuplicateId) else error.request_id if request_id is None else request_id
                self._sessions.refuse(peer, envelope, m.Failure(id=about, code=error.code, message=str(error)))

    def _on_request(self, entry: Open, request: m.AnyRequest) -> None:
        self._counts[codec.type_of(request)] += 1
        match request:
            case m.Generate() | m.Tokenize() | m.Score():
                self._refuse_when_draining()
                self._hand_on(entry, request, self._workers.serving(request))
            case m.Load():
                self._refuse_when_draining()
                self._loads.load(entry, request)
            case m.Measure():
                self._refuse_when_draining()
                self._loads.measure(entry, request)
            case m.Unload():
                self._loads.unload(entry, request)
            case m.Cancel():
                found = self._cancel(self._sessions.of_peer(entry.peer, request.target))
                self._sessions.reply(entry, m.CancelSent(id=None, found=found))
            case m.Hello():
                log.debug("hello from %r", request.client[:64])
                self._sessions.reply(
                    entry, status.server_info(self._server_id, self._guard.role(entry.owner.user) or "generate")
                )
            case m.Ping():
                self._sessions.reply(entry, self._pong())
            case m.Models():
                self._sessions.reply(entry, status.model_list(self._catalogue, self._workers, self._config))
            case m.GetStats():
                self._sessions.reply(entry, self._stats())

    def _hand_on(self, entry: Open, request: m.OfModel, replicas: list[Worker]) -> None:
        """Raises: Busy, WorkerDied if none of them takes it."""
        limit = self._config.max_open_per_worker
        free = [worker for worker in replicas if self._sessions.held(worker.identity) < limit]
        refused: RequestError | None = None
        while free:
            worker = routing.choose(free, request, lambda w: self._sessions.held(w.identity))
            free.remove(worker)
            try:
                self._to_worker(worker, Work(id=entry.key, group=entry.owner.number, request=request))
            except (Busy, WorkerDied) as e:  # it is stuck or gone, and will be found so in a moment
                refused = e
                continue
            if self._config.log_prompts and isinstance(request, m.Generate) and request.prompt is not None:
                log.info("prompt %r", request.prompt)
            self._sessions.assign(entry, worker.identity)
            worker.used = time.monotonic()
            return
        raise refused or Busy(f"{replicas[0].name} has {limit} requests to do, which is the limit; try again later")

    def _try_elsewhere(self, entry: Open, lost: Worker) -> bool:
        """If nothing of it has been told, another replica begins it anew. Once: it may be what ended the first."""
        request, left_ms = entry.request, (entry.deadline - time.monotonic()) * 1000
        if entry.told or entry.moved or entry.cancelled or left_ms < 1 or not isinstance(request, m.OfModel):
            return False
        entry.moved = True
        if request.deadline_ms:
            request = msgspec.structs.replace(request, deadline_ms=int(left_ms))
        replicas = [worker for worker in self._workers.matching(*lost.way) if worker.serves]
        with contextlib.suppress(RequestError):
            if replicas:
                self._hand_on(entry, request, replicas)
                return True
        return False

    def _cancel(self, target: Open | None) -> bool:
        if target is None or not isinstance(target.request, m.Generate | m.Score | m.Load | m.Measure):
            return False
        self._abandon(target)
        target.cancelled = target.cancelled or time.monotonic()
        if isinstance(target.request, m.Load | m.Measure):
            self._sessions.fail(target, Cancelled(f"the {codec.type_of(target.request)} was cancelled"))
        return True

    def _abandon(self, entry: Open) -> None:
        """Stop the work that a request began: it was cancelled, or its peer vanished."""
        if entry.worker:
            worker = self._workers.by_identity(entry.worker)
            if worker:
                with contextlib.suppress(RequestError):  # a worker that cannot be told is gone, or will be found stuck
                    self._to_worker(worker, m.Cancel(target=entry.key))
        self._loads.abandon(entry)

    def _refuse_when_draining(self) -> None:
        if self._drain_by is not None:
            raise Draining("the server is stopping and takes no new work")

    # From and to the workers

    def _to_worker(self, worker: Worker, request: ForWorker) -> None:
        """Raises: Busy, WorkerDied."""
        try:
            self._workers_socket.send_multipart([worker.connection, link.encode(request)], zmq.NOBLOCK)
        except zmq.Again:
            raise Busy(f"{worker.name} does not take requests at the moment; try again later") from None
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            raise WorkerDied(f"the worker of {worker.name} is gone") from None

    def _receive_from_workers(self) -> None:
        self._watch_worker_connections()
        for _ in range(TURN):
            if not sockets.readable(self._workers_socket):
                return
            frames = self._workers_socket.recv_multipart(zmq.NOBLOCK, copy=False)
            if len(frames) != 2:  # no worker's, which send one after the routing id
                continue
            routing_id, frame = frames
            worker = self._workers.by_connection(routing_id.bytes)
            if worker is None:
                continue
            if worker.connection != routing_id.bytes:
                self._watch_worker_connections()  # of one that had this descriptor before
                if (
                    worker.connection and not worker.cut
                ):  # a node that was given up is heard again, and another has its place
                    with contextlib.suppress(zmq.ZMQError):
                        self._workers_socket.send_multipart([routing_id.bytes, link.encode(Leave())], zmq.NOBLOCK)
                    continue
                self._loads.connected(worker, routing_id.bytes, int(frame.get(zmq.SRCFD)))
            try:
                worker.heard = time.monotonic()
                if message := link.decode_from_worker(frame.bytes):
                    self._on_worker(worker, message)
            except Exception as e:  # noqa: BLE001 - a fault with one worker's message must not end the others
                error = e if isinstance(e, RequestError) else _internal(e)
                log.warning("%s: %s", worker.name, error)
                self._loads.give_up_on(worker, error)

    def _watch_worker_connections(self) -> None:
        while event := sockets.next_event(self._workers_monitor):
            for worker in self._workers.all():
                if event == (zmq.EVENT_DISCONNECTED, worker.fd):
                    worker.fd, worker.cut = -1, time.monotonic()

    def _on_worker(self, worker: Worker, message: FromWorker) -> None:
        if isinstance(message, Beat):
            worker.beat = message
        elif message.id is not None:
            self._pass_on(worker, message)
        else:
            self._loads.heard(worker, message)

    def _pass_on(self, worker: Worker, message: FromWorker) -> None:
        entry = self._sessions.by_key(message.id)
        if entry is None or entry.worker != worker.identity:
            return  # its peer is gone
        if isinstance(message, m.Generated):
            ledger = message.ledger
            log.info(
                "generate %s %s: prompt %d, new %d tokens; queue %.1f, tokenise %.1f, prefill %.1f, decode %.1f ms; %.1f tokens/s",
                worker.name, message.finish_reason, ledger.prompt_tokens, ledger.new_tokens, ledger.queue_ms, ledger.tokenise_ms, ledger.prefill_ms,
                ledger.decode_ms, ledger.tokens_per_second,
            )  # fmt: skip
            if self._metrics:
                self._metrics.generated(worker.way, ledger)
            worker.known.learn(routing.blocks_of(entry.request, message))
        if isinstance(message, m.Failure):
            log.info("%s %s failed: %s", codec.type_of(entry.request), worker.name, message.code)
        if isinstance(message, m.Progress | m.Tokens | m.Generated | m.Tokenized | m.Scored | m.Failure):
            worker.used = time.monotonic()
            self._sessions.reply(entry, message)

    # Time

    def _watch_keys(self) -> None:
        if lost := self._guard.lost():
            for entry in self._sessions.of_users(lost):
                if (
                    isinstance(entry.request, m.Load | m.Measure | m.Unload)
                    or self._guard.role(entry.owner.user) is None
                ):
                    self._abandon(entry)
                    self._sessions.fail(entry, Unauthorised(REVOKED))

    def _watch_clock(self) -> None:
        now = time.monotonic()
        for entry in self._sessions.all_open():
            if now > entry.deadline + (DEADLINE_GRACE_S if entry.worker else 0):
                self._abandon(entry)
                self._sessions.fail(entry, DeadlineExceeded(f"not done within {entry.request.deadline_ms} ms"))
            elif entry.cancelled and now > entry.cancelled + CANCEL_GRACE_S:
                self._sessions.fail(entry, Cancelled("cancelled; its worker did not answer"))
        if self._drain_by is None:
            return
        self._manager.stopping()
        self._loads.drain()
        if (not self._sessions.all_open() and not self._sessions.backlog) or now > self._drain_by + CANCEL_GRACE_S:
            self._over = True
        elif now > self._drain_by:
            for entry in self._sessions.all_open():  # each time anew: its worker's queue may have been full
                self._cancel(entry)

    def _report(self) -> None:
        """Tell the service manager and Prometheus how things stand."""
        workers = self._workers.models()
        self._manager.moving(
            f"{self.endpoint}: {', '.join(dict.fromkeys(f'{w.name} {w.state}' for w in workers)) or 'no model'}"
        )
        if self._metrics:
            self._metrics.look(
                {(*w.way, str(w.replica)): w.beat or Beat(id=None, rss_bytes=w.rss_bytes) for w in workers if w.ready},
                self._sessions,
                self._loads,
            )

    def _close(self) -> None:
        for entry in self._sessions.all_open():
            self._sessions.fail(entry, Draining("the server has stopped"))
        for worker in self._workers.all():
            self._workers.stop(worker)
        give_up = time.monotonic() + CLOSE_S
        while self._workers.all() and time.monotonic() < give_up:
            self._workers.ended()
            time.sleep(0.01)
        self._workers.close()
        sockets.close_monitored(self._workers_socket, self._workers_monitor)
        self._guard.close()
        sockets.close_monitored(self._socket, self._monitor, sockets.DRAIN_LINGER_MS)
        self._context.term()

    # Answers

    def _pong(self) -> m.Pong:
        return m.Pong(
            id=None,
            server_id=self._server_id,
            uptime_ms=(time.monotonic() - self._began) * 1000,
            draining=self._drain_by is not None,
            workers=[w.health() for w in self._workers.models()],
        )

    def _stats(self) -> m.Stats:
        return m.Stats(
            id=None,
            uptime_ms=(time.monotonic() - self._began) * 1000,
            rss_bytes=status.process_rss(),
            peers=self._sessions.peers,
            open_requests=len(self._sessions.all_open()),
            requests=dict(self._counts),
            errors=dict(self._sessions.errors),
            workers=[w.stats() for w in self._workers.all() if w.ready],
        )


def _internal(error: Exception) -> RequestError:
    """An error for the peer, with an id that stands beside the traceback in the log."""
    incident = secrets.token_hex(4)
    log.error("internal error %s", incident, exc_info=error)
    return Internal(f"a fault of the server; its log has the details under {incident}")
