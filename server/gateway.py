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

import zmq

from protocol import codec, messages as m, sockets
from protocol.errors import (
    BadRequest,
    Busy,
    Cancelled,
    DeadlineExceeded,
    Draining,
    Internal,
    LoadFailed,
    NotLoaded,
    RequestError,
    Unauthorised,
    WorkerDied,
    from_code,
)
from protocol.keys import CurveKeys, read_secret
from protocol.link import Beat, ForWorker, FromWorker, Ready, Sized, Started, Work
from server import status
from server.auth import REVOKED, Guard, Keyring
from server.catalogue import Catalogue, Model, check_compiled, choose_engine
from server.config import Config
from server.sessions import DuplicateId, Open, Sessions
from server.workers import Launcher, LocalLauncher, Worker, Workers, exit_words

log = logging.getLogger("gpt2d")

TICK_MS, BACKLOG_TICK_MS = 100, 5
LOOK_S = 0.05
"""How often processes and deadlines are looked at."""
TURN = 64
"""Messages taken from one socket before the other has its turn: a flood must not starve it."""
MAX_FRAMES, MAX_ENVELOPE_BYTES = 8, 1024
CLOSE_S = 10.0
CANCEL_GRACE_S = 5.0
DEADLINE_GRACE_S = 1.0
"""A worker ends its requests at their deadlines; the gateway does so for a worker that does not."""


class Gateway:
    def __init__(self, config: Config, launcher: Launcher | None = None) -> None:
        """Bind.

        Raises: zmq.ZMQError if the endpoint cannot be bound, RequestError for a preload that makes no sense, KeyFileError.
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
        self._workers_socket = sockets.worker_gateway_socket(self._context, keys)
        self._sessions = Sessions(config, self._socket)
        self._workers = Workers(config, keys, sockets.endpoint_of(self._workers_socket), launcher or LocalLauncher())
        self._unloads: list[tuple[Open, list[Worker]]] = []
        self._connected: set[int] = set()
        self._began = time.monotonic()
        self._server_id = secrets.token_hex(8)
        self._counts: Counter[str] = Counter()
        self._drain_by: float | None = None
        self._over = False
        self.endpoint = sockets.endpoint_of(self._socket)
        for model, engine, precision in preloads:
            if not self._workers.matching(model.name, engine, precision):
                self._workers.start(model, engine, precision).kept = True

    def drain(self) -> None:
        """Take no new work and stop when the running streams have finished; called again: stop now. Signal-safe."""
        if self._drain_by is None:
            self._drain_by = time.monotonic() + self._config.drain_seconds
        else:
            self._over = True

    def run(self) -> None:
        """Serve until drained."""
        poller = zmq.Poller()
        for socket in (self._socket, self._monitor, self._workers_socket, self._guard.socket):
            if socket:
                poller.register(socket, zmq.POLLIN)
        looked = 0.0
        try:
            while not self._over:
                poller.poll(BACKLOG_TICK_MS if self._sessions.backlog else TICK_MS)
                self._watch_connections()
                self._guard.answer()
                self._receive_from_peers()
                self._receive_from_workers()
                self._sessions.flush()
                for entry in self._sessions.take_gone():
                    self._abandon(entry)
                if time.monotonic() > looked + LOOK_S:
                    self._watch_workers()
                    self._watch_keys()
                    self._watch_clock()
                    looked = time.monotonic()
        finally:
            self._close()

    # From the peers

    def _watch_connections(self) -> None:
        while event := sockets.next_event(self._monitor):
            kind, value = event
            if kind == zmq.EVENT_ACCEPTED:
                self._connected.add(value)
            elif kind == zmq.EVENT_DISCONNECTED:
                self._connected.discard(value)
                self._sessions.drop_fd(value)
            else:
                self._guard.refusals.handshake(value)

    def _receive_from_peers(self) -> None:
        for _ in range(TURN):
            if not sockets.readable(self._socket):
                return
            frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            fd = int(frames[-1].get(zmq.SRCFD))
            # Looked at after each receipt, so that a file descriptor that was closed and used again is not mistaken.
            self._watch_connections()
            small = sum(len(f) for f in frames[:-1]) <= MAX_ENVELOPE_BYTES and len(frames) <= MAX_FRAMES
            if small and fd in self._connected and not self._sessions.has_given_up(frames[0].bytes):
                user = self._guard.user(frames[-1])
                self._on_frame(frames[0].bytes, fd, user, [f.bytes for f in frames[1:-1]], frames[-1].bytes)

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
                self._fail(entry, error)
            else:
                about = None if isinstance(e, DuplicateId) else error.request_id if request_id is None else request_id
                self._sessions.send(peer, envelope, m.Failure(id=about, code=error.code, message=str(error)))

    def _on_request(self, entry: Open, request: m.AnyRequest) -> None:
        self._counts[codec.type_of(request)] += 1
        match request:
            case m.Generate() | m.Tokenize() | m.Score():
                self._hand_on(entry, request)
            case m.Load():
                self._load(entry, request)
            case m.Measure():
                self._measure(entry, request)
            case m.Unload():
                self._unload(entry, request)
            case m.Cancel():
                found = self._cancel(self._sessions.of_peer(entry.peer, request.target))
                self._sessions.reply(entry, m.CancelSent(id=None, found=found))
            case m.Hello():
                self._sessions.reply(entry, status.server_info(self._server_id, self._guard.role(entry.owner.user) or "generate"))
            case m.Ping():
                self._sessions.reply(entry, self._pong())
            case m.Models():
                self._sessions.reply(entry, status.model_list(self._catalogue, self._workers, self._config))
            case m.GetStats():
                self._sessions.reply(entry, self._stats())

    def _hand_on(self, entry: Open, request: m.OfModel) -> None:
        self._refuse_when_draining()
        worker = self._workers.choose(request)
        waiting = len(self._sessions.of_worker(worker.identity))
        if waiting >= self._config.max_open_per_worker:
            raise Busy(f"{worker.name} has {waiting} requests to do, which is the limit; try again later")
        if self._config.log_prompts and isinstance(request, m.Generate) and request.prompt is not None:
            log.info("prompt %r", request.prompt)
        self._to_worker(worker, Work(id=entry.key, group=entry.owner.number, request=request))
        entry.worker, worker.used = worker.identity, time.monotonic()

    def _load(self, entry: Open, request: m.Load) -> None:
        self._refuse_when_draining()
        engine, precision = choose_engine(request.engine, request.precision)
        if request.compile:
            check_compiled(engine, precision)
        model = self._catalogue.find(request.model)
        worker = next(iter(self._workers.matching(model.name, engine, precision)), None)
        if worker and request.compile and not worker.compiled:
            raise BadRequest(f"{worker.name} is loaded without `compile`; unload it first")
        if worker and worker.ready:
            self._sessions.reply(entry, worker.loaded(worker.ready, already=True))
            return
        if worker is None:
            worker = self._start(model, engine, precision, compiled=request.compile)
            log.info("load %s", worker.name)
        worker.waiters.append(entry.key)

    def _measure(self, entry: Open, request: m.Measure) -> None:
        self._refuse_when_draining()
        engine, precision = choose_engine(request.engine, request.precision)
        model = self._catalogue.find(request.model)
        if model.folder is None:
            raise NotLoaded(f"{model.name} is not on this server's disk; load it first, which downloads it")
        if busy := next(
            (w for w in self._workers.all() if w.task and w.state != "stopping"), None
        ):  # one at a time: each is as large as two models
            raise Busy(f"{busy.name} is being measured; try again when that is done")
        worker = self._start(model, engine, precision, task=request)
        log.info("measure %s", worker.name)
        worker.waiters.append(entry.key)

    def _start(self, model: Model, engine: str, precision: str, *, compiled: bool = False, task: m.Measure | None = None) -> Worker:
        try:
            return self._workers.start(model, engine, precision, compiled=compiled, task=task)
        except OSError as e:
            raise LoadFailed(f"no worker process can be started: {e}") from None

    def _unload(self, entry: Open, request: m.Unload) -> None:
        """Answered when the memory is free, which is when the processes have ended."""
        found = [w for w in self._workers.models() if w.matches(request.model, request.engine, request.precision)]
        if not found:
            raise NotLoaded(f"{request.model} is not loaded")
        for worker in found:
            if worker.state != "stopping":
                log.info("unload %s", worker.name)
                self._lose(worker, NotLoaded(f"{worker.name} was unloaded"))
                self._workers.stop(worker)
        self._unloads.append((entry, found))

    def _cancel(self, target: Open | None) -> bool:
        if target is None or not isinstance(target.request, m.Generate | m.Score | m.Load | m.Measure):
            return False
        self._abandon(target)
        target.cancelled = target.cancelled or time.monotonic()
        if isinstance(target.request, m.Load | m.Measure):
            self._fail(target, Cancelled(f"the {codec.type_of(target.request)} was cancelled"))
        return True

    def _abandon(self, entry: Open) -> None:
        """Stop the work that a request began: it was cancelled, or its peer vanished."""
        if entry.worker:
            worker = self._workers.by_identity(entry.worker.encode())
            if worker:
                with contextlib.suppress(RequestError):  # a worker that cannot be told is gone, or will be found stuck
                    self._to_worker(worker, m.Cancel(target=entry.key))
        for worker in self._workers.all():
            if entry.key in worker.waiters:
                worker.waiters.remove(entry.key)
                if not worker.waiters and not worker.ready and not worker.kept:
                    log.info("%s: abandoned", worker.name)
                    self._workers.stop(worker)

    def _refuse_when_draining(self) -> None:
        if self._drain_by is not None:
            raise Draining("the server is stopping and takes no new work")

    # From and to the workers

    def _to_worker(self, worker: Worker, request: ForWorker) -> None:
        try:
            self._workers_socket.send_multipart([worker.identity.encode(), codec.encode(request)], zmq.NOBLOCK)
        except zmq.Again:
            raise Busy(f"{worker.name} does not take requests at the moment; try again later") from None
        except zmq.ZMQError as e:
            if e.errno != zmq.EHOSTUNREACH:
                raise
            raise WorkerDied(f"the worker of {worker.name} is gone") from None

    def _receive_from_workers(self) -> None:
        for _ in range(TURN):
            if not sockets.readable(self._workers_socket):
                return
            identity, frame = self._workers_socket.recv_multipart(zmq.NOBLOCK)
            worker = self._workers.by_identity(identity)
            if worker is None:
                continue
            try:
                worker.heard = time.monotonic()
                if message := codec.decode_from_worker(frame):
                    self._on_worker(worker, message)
            except Exception as e:  # noqa: BLE001 - a fault with one worker's message must not end the others
                error = e if isinstance(e, RequestError) else _internal(e)
                log.warning("%s: %s", worker.name, error)
                self._lose(worker, error)
                self._workers.stop(worker)

    def _on_worker(self, worker: Worker, message: FromWorker) -> None:
        if isinstance(message, Beat):
            worker.beat = message
        elif message.id is not None:
            self._pass_on(worker, message)
        elif isinstance(message, m.Progress):
            for entry in self._waiters(worker):
                if isinstance(entry.request, m.Load | m.Measure) and entry.request.stream:
                    self._sessions.reply(entry, message)
        elif isinstance(message, Started) and worker.task:
            self._to_worker(worker, worker.task)
        elif isinstance(message, m.Measured):
            log.info("%s: perplexity %+.2f %%", worker.name, message.fidelity.perplexity_change_pct)
            worker.measured = message  # told when the process has ended: then its memory is free, and another can be measured
            self._workers.stop(worker)
        elif isinstance(message, Sized):
            self._workers.resize(worker, message.memory_bytes)
        elif isinstance(message, Ready) and worker.state == "loading":
            worker.state, worker.ready = "ready", message
            worker.used = time.monotonic()
            worker.load_ms = (worker.used - worker.began) * 1000
            log.info("loaded %s in %.0f ms, %.0f MB", worker.name, worker.load_ms, message.rss_bytes / 1e6)
            for entry in self._waiters(worker):
                self._sessions.reply(entry, worker.loaded(message, already=False))
            worker.waiters.clear()
        elif isinstance(message, m.Failure):
            log.error("%s", message.message)
            self._lose(worker, from_code(message.code, message.message))
            self._workers.stop(worker)

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
        if isinstance(message, m.Failure):
            log.info("%s %s failed: %s", codec.type_of(entry.request), worker.name, message.code)
        if isinstance(message, m.Progress | m.Tokens | m.Generated | m.Tokenized | m.Scored | m.Failure):
            worker.used = time.monotonic()
            self._sessions.reply(entry, message)

    def _watch_workers(self) -> None:
        for worker, code in self._workers.ended():
            if worker.state == "stopping":
                log.info("%s has ended", worker.name)
                if worker.measured:
                    for entry in self._waiters(worker):
                        self._sessions.reply(entry, worker.measured)
            elif worker.ready:
                log.error("the worker of %s died (%s)", worker.name, exit_words(code))
                self._lose(worker, WorkerDied(f"the worker of {worker.name} died ({exit_words(code)}); load it again"))
            else:
                doing = "measured" if worker.task else "loaded"
                log.error("the worker of %s died while it %s (%s)", worker.name, doing, exit_words(code))
                self._lose(
                    worker, LoadFailed(f"the worker died while it {doing} {worker.name} ({exit_words(code)}); the server's log may say why")
                )
        alive = set(self._workers.all())
        for unload in list(self._unloads):
            entry, stopped = unload
            if not alive.intersection(stopped):
                self._sessions.reply(entry, m.Unloaded(id=None, names=[w.name for w in stopped]))
                self._unloads.remove(unload)

    def _lose(self, worker: Worker, error: RequestError) -> None:
        """Fail everything that a worker holds or that waits for it."""
        for entry in (*self._sessions.of_worker(worker.identity), *self._waiters(worker)):
            self._fail(entry, error)
        worker.waiters.clear()

    def _waiters(self, worker: Worker) -> list[Open]:
        return [entry for key in worker.waiters if (entry := self._sessions.by_key(key))]

    # Time

    def _watch_keys(self) -> None:
        if lost := self._guard.lost():
            for entry in self._sessions.of_users(lost):
                if isinstance(entry.request, m.Load | m.Measure | m.Unload) or self._guard.role(entry.owner.user) is None:
                    self._abandon(entry)
                    self._fail(entry, Unauthorised(REVOKED))

    def _watch_clock(self) -> None:
        now = time.monotonic()
        for entry in self._sessions.all_open():
            if now > entry.deadline + (DEADLINE_GRACE_S if entry.worker else 0):
                self._abandon(entry)
                self._fail(entry, DeadlineExceeded(f"not done within {entry.request.deadline_ms} ms"))
            elif entry.cancelled and now > entry.cancelled + CANCEL_GRACE_S:
                self._fail(entry, Cancelled("cancelled; its worker did not answer"))
        if self._config.keep_alive is not None:
            for worker in self._workers.all():
                idle = worker.state == "ready" and not self._sessions.of_worker(worker.identity)
                if idle and now > worker.used + self._config.keep_alive:
                    log.info("%s was not used for %g s: unload", worker.name, self._config.keep_alive)
                    self._workers.stop(worker)
        if self._drain_by is None:
            return
        for worker in self._workers.all():
            if worker.state == "loading":
                self._lose(worker, Draining("the server is stopping"))
                self._workers.stop(worker)
        if (not self._sessions.all_open() and not self._sessions.backlog) or now > self._drain_by + DEADLINE_GRACE_S:
            self._over = True
        elif now > self._drain_by:
            for entry in self._sessions.all_open():
                self._cancel(entry)

    def _close(self) -> None:
        for entry in self._sessions.all_open():
            self._fail(entry, Draining("the server has stopped"))
        for worker in self._workers.all():
            self._workers.stop(worker)
        give_up = time.monotonic() + CLOSE_S
        while self._workers.all() and time.monotonic() < give_up:
            self._workers.ended()
            time.sleep(0.01)
        self._workers_socket.close()
        self._guard.close()
        sockets.close_monitored(self._socket, self._monitor, sockets.DRAIN_LINGER_MS)
        self._context.term()

    # Answers

    def _fail(self, entry: Open, error: RequestError) -> None:
        self._sessions.reply(entry, m.Failure(id=None, code=error.code, message=str(error)))

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
