"""What becomes of `load`, `unload` and `measure`: which workers begin, who waits for them, when they end, and which begin again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import messages as m
from protocol.errors import BadRequest, Busy, Draining, LoadFailed, NotLoaded, RequestError, WorkerDied, from_code
from server.catalogue.catalogue import Catalogue, Model
from server.catalogue.engines import check_compiled, choose_engine
from server.config import Config
from server.gateway.replicas import Worker, Workers, agree, exit_words
from server.gateway.sessions import Open, Sessions
from server.link import ForWorker, FromWorker, Ready, Sized, Started

log = logging.getLogger("gpt2d")

AGAIN_S, AGAIN_MAX_S = 1.0, 60.0
"""A kept model whose worker died is loaded again after so long; twice as long each time, until one has stayed up for the second."""
PAUSE_S = 2.0
CUT_S = 0.5
"""A worker whose connection broke and of whose process nothing is heard is lost after so long."""


@dataclass(eq=False)
class Kept:
    """A model that is to stay loaded: one that was preloaded, or loaded with a number of replicas."""

    model: Model
    engine: str
    precision: str
    replicas: int = 1
    compiled: bool = False
    firm: int = 0
    """So many were ready once: they stay also when a load that asks for more is cancelled or fails."""
    due: float | None = None
    """When it is loaded again (monotonic)."""
    delay_s: float = AGAIN_S
    restarts: int = 0

    @property
    def way(self) -> tuple[str, str, str]:
        return self.model.name, self.engine, self.precision

    @property
    def name(self) -> str:
        return "/".join(self.way)


@dataclass(eq=False)
class Loads:
    """Used by the gateway's thread only. `tell` sends a worker something; `try_elsewhere` finds another worker for a request, if it can."""

    config: Config
    catalogue: Catalogue
    workers: Workers
    sessions: Sessions
    tell: Callable[[Worker, ForWorker], None]
    try_elsewhere: Callable[[Open, Worker], bool]
    _unloads: list[tuple[Open, list[Worker], list[str]]] = field(default_factory=list)
    _kept: list[Kept] = field(default_factory=list)
    _watched: float = field(default_factory=time.monotonic)
    restarts: int = 0
    """How often a kept model was loaded again."""
    deaths: int = 0
    """How many workers died, or were ended because they were stuck."""

    def preload(self, ways: list[tuple[Model, str, str, int]]) -> None:
        """Load models that stay, each with so many replicas. Raises: NoMemory, LoadFailed."""
        for way in ways:
            kept = Kept(*way, firm=way[-1])
            self._start_more(
                kept.model, kept.engine, kept.precision, kept.replicas - len(self.workers.matching(*kept.way))
            )
            self._kept = [k for k in self._kept if k.way != kept.way] + [kept]

    # Requests

    def load(self, entry: Open, request: m.Load) -> None:
        engine, precision = choose_engine(request.engine, request.precision)
        if request.compile:
            check_compiled(engine, precision)
        model = self.catalogue.find(request.model)
        there = self.workers.matching(model.name, engine, precision)
        if there and request.compile and not there[0].compiled:
            raise BadRequest(f"{there[0].name} is loaded without `compile`; unload it first")
        kept = self._keeper((model.name, engine, precision))
        wanted = request.replicas or len(there) or (kept.replicas if kept else 1)
        compiled = there[0].compiled if there else request.compile
        fresh = self._start_more(model, engine, precision, wanted - len(there), compiled=compiled)
        if request.replicas and not kept:
            kept = Kept(model, engine, precision, firm=sum(worker.ready is not None for worker in there))
            self._kept.append(kept)
        if kept and (request.replicas or fresh):
            kept.due, kept.replicas, kept.firm, kept.compiled = None, wanted, min(kept.firm, wanted), compiled
        for worker in sorted(there, key=self._worth)[: max(0, len(there) - wanted)]:
            self._drain_one(worker)
        there = [worker for worker in there if not worker.draining]
        if request.replicas is None and any(worker.ready for worker in there):
            waits_for = []
        else:
            waits_for = [worker for worker in (*there, *fresh) if not worker.ready]
        for worker in waits_for:
            worker.waiters.append(entry.key)
        if not waits_for:
            self._answer_load(entry, there, already=True)

    def _start_more(
        self, model: Model, engine: str, precision: str, count: int, *, compiled: bool = False
    ) -> list[Worker]:
        """All of them, or none. Raises: NoMemory, LoadFailed."""
        fresh: list[Worker] = []
        try:
            for _ in range(count):
                fresh.append(self.workers.start(model, engine, precision, compiled=compiled, share=count))
                log.info("load %s", fresh[-1].name)
        except RequestError:
            for worker in fresh:
                self.workers.stop(worker)
            raise
        return fresh

    def _worth(self, worker: Worker) -> tuple[bool, int, int]:
        """Sorts replicas: those that are let go first come first."""
        return worker.ready is not None, self.sessions.held(worker.identity), -worker.replica

    def _drain_one(self, worker: Worker) -> None:
        """It gets nothing new, and is stopped when it has nothing left to do."""
        log.info("%s: replica %d is let go", worker.name, worker.replica)
        worker.draining = True
        self._settle(worker)

    def _settle(self, worker: Worker) -> None:
        """Nobody waits for that worker any more: who waits for no other one either has its answer."""
        waiters = self._waiters(worker)
        worker.waiters.clear()
        replicas = self.workers.matching(*worker.way)
        for entry in waiters:
            if not any(entry.key in other.waiters for other in replicas):
                self._answer_load(entry, replicas, already=False)

    def _answer_load(self, entry: Open, replicas: list[Worker], *, already: bool) -> None:
        ready = [(worker, worker.ready) for worker in replicas if worker.ready]
        if ready:
            if kept := self._keeper(ready[0][0].way):
                kept.firm = min(kept.replicas, max(kept.firm, len(ready)))
            worker, told = max(ready, key=lambda found: found[0].began)
            self.sessions.reply(entry, worker.loaded(told, already=already, replicas=len(ready)))
        else:
            self.sessions.fail(
                entry, LoadFailed("another client wanted fewer replicas, and none is loaded yet; try again")
            )

    def measure(self, entry: Open, request: m.Measure) -> None:
        engine, precision = choose_engine(request.engine, request.precision)
        model = self.catalogue.find(request.model)
        if model.folder is None:
            raise NotLoaded(f"{model.name} is not on this server's disk; load it first, which downloads it")
        # One at a time: each is as large as two models.
        if busy := next((w for w in self.workers.all() if w.task and w.state != "stopping"), None):
            raise Busy(f"{busy.name} is being measured; try again when that is done")
        worker = self.workers.start(model, engine, precision, task=request)
        log.info("measure %s", worker.name)
        worker.waiters.append(entry.key)

    def unload(self, entry: Open, request: m.Unload) -> None:
        """Answered when the memory is free, which is when the processes have ended."""
        which = (request.model, request.engine, request.precision)
        found = [w for w in self.workers.models() if w.matches(*which)]
        waiting = [k for k in self._kept if k.due and agree(which, k.way)]
        if not found and not waiting:
            raise NotLoaded(f"{request.model} is not loaded")
        self._kept = [k for k in self._kept if not agree(which, k.way)]
        for worker in found:
            if worker.state != "stopping":
                log.info("unload %s", worker.name)
                self.lose(worker, NotLoaded(f"{worker.name} was unloaded"))
                self.workers.stop(worker)
        self._unloads.append((entry, found, list(dict.fromkeys(w.name for w in found)) or [k.name for k in waiting]))

    def abandon(self, entry: Open) -> None:
        """Nobody waits for that request any more: what began for it alone ends."""
        for worker in self.workers.all():
            if entry.key in worker.waiters:
                worker.waiters.remove(entry.key)
                kept = None if worker.task else self._keeper(worker.way)
                stays = kept and len(self.workers.matching(*worker.way)) <= kept.firm
                if not worker.waiters and not worker.load_ms and not stays:
                    log.info("%s: abandoned", worker.name)
                    self.workers.stop(worker)
                    if kept:
                        kept.replicas = max(kept.firm, len(self.workers.matching(*worker.way)))
                        self._kept = [k for k in self._kept if k.replicas]

    # What the workers say of themselves

    def heard(self, worker: Worker, message: FromWorker) -> None:
        """Raises: NoMemory, and what `tell` raises."""
        if isinstance(message, m.Progress):
            self._tell_progress(worker, message)
        elif isinstance(message, Sized):
            self.workers.resize(worker, message.memory_bytes)
        elif isinstance(message, Started):
            worker.node = message.node
            if worker.task:
                self.tell(worker, worker.task)
        elif isinstance(message, m.Measured):
            log.info("%s: perplexity %+.2f %%", worker.name, message.fidelity.perplexity_change_pct)
            worker.measured = (
                message  # told when the process has ended: then its memory is free, and another can be measured
            )
            self.workers.stop(worker)
        elif isinstance(message, Ready) and worker.state == "loading":
            worker.state, worker.ready = "ready", message
            worker.used = time.monotonic()
            worker.load_ms = (worker.used - worker.began) * 1000
            log.info(
                "loaded %s in %.0f ms, %.0f MB, on %s",
                worker.name,
                worker.load_ms,
                message.rss_bytes / 1e6,
                worker.node,
            )
            self._settle(worker)
        elif isinstance(message, m.Failure):
            log.error("%s", message.message)
            self.give_up_on(worker, from_code(message.code, message.message))

    def _tell_progress(self, worker: Worker, message: m.Progress) -> None:
        for entry in self._waiters(worker):
            of_first = (
                next(w for w in self.workers.all() if entry.key in w.waiters) is worker
            )  # replicas load side by side
            if of_first and isinstance(entry.request, m.Load | m.Measure) and entry.request.stream:
                self.sessions.reply(entry, message)

    def connected(self, worker: Worker, routing_id: bytes, fd: int) -> None:
        """A worker's process says its first word. It may be another than before: a cluster begins one anew elsewhere."""
        if worker.state == "stopping":
            worker.process.kill()  # it was begun anew while it was told to end
        elif worker.connection:
            self._lost(worker)
        worker.connection, worker.fd = routing_id, fd

    def give_up_on(self, worker: Worker, error: RequestError) -> None:
        """It cannot go on: fail what it has and stop it; if its model is kept, another takes its place."""
        self.lose(worker, error)
        self.workers.stop(worker)
        self._again(worker, fault=False)

    def lose(self, worker: Worker, error: RequestError) -> None:
        """Fail everything that a worker holds or that waits for it; what was begun for these waiters alone ends."""
        waiters = self._waiters(worker)
        worker.waiters.clear()
        for entry in (*self.sessions.of_worker(worker.identity), *waiters):
            self.sessions.fail(entry, error)
        for entry in waiters:
            self.abandon(entry)

    def _give_up(self, worker: Worker, error: RequestError) -> None:
        """As `lose`; but of what it held, another replica takes over that of which nothing was told yet."""
        for entry in self.sessions.of_worker(worker.identity):
            self.try_elsewhere(entry, worker)
        self.lose(worker, error)

    def _lost(self, worker: Worker) -> None:
        """Its process is gone with its node, or out of reach. Where its launcher begins another, what waits for it waits on."""
        if not worker.process.renew(worker.connection.decode()):
            worker.cut = 0.0  # it ends, and will be found so
            return
        self.deaths += 1
        log.error("the worker of %s on %s is lost: its connection broke", worker.name, worker.node or "a node")
        waiters = list(worker.waiters)
        worker.waiters.clear()
        error = WorkerDied(
            f"the worker of {worker.name} on {worker.node or 'a node'} was lost; another is begun, try again"
        )
        worker.forget_process()
        self._give_up(worker, error)
        worker.waiters = waiters

    def _waiters(self, worker: Worker) -> list[Open]:
        return [entry for key in worker.waiters if (entry := self.sessions.by_key(key))]

    # Time

    def watch(self) -> None:
        """Look after processes that have ended, that do not move, that nobody uses, and those that are due again."""
        now = time.monotonic()
        if now > self._watched + PAUSE_S:  # this process stood still itself, and perhaps the workers with it
            for worker in self.workers.all():
                worker.heard += now - self._watched
        self._watched = now
        for worker, code in self.workers.ended():
            self._ended(worker, code)
        for worker in self.workers.models():
            if told := worker.process.progress():
                self._tell_progress(worker, told)
            if worker.state != "stopping" and worker.cut and now > worker.cut + CUT_S:
                self._lost(worker)
            if worker.state != "stopping" and worker.draining and not self.sessions.held(worker.identity):
                self.workers.stop(worker)
            still = now - worker.heard
            if self.config.stuck_seconds and worker.state == "ready" and still > self.config.stuck_seconds:
                self.deaths += 1
                log.error("the worker of %s has not moved for %.0f s: it is ended", worker.name, still)
                self.workers.kill(worker)
                self._give_up(
                    worker,
                    WorkerDied(
                        f"the worker of {worker.name} had not moved for {still:.0f} s and was ended; load it again"
                    ),
                )
                self._again(worker, fault=True)
            if self.config.keep_alive is not None and worker.serves:
                replicas = self.workers.matching(*worker.way)
                idle = all(replica.ready and not self.sessions.held(replica.identity) for replica in replicas)
                if idle and now > max(replica.used for replica in replicas) + self.config.keep_alive:
                    log.info("%s was not used for %g s: unload", worker.name, self.config.keep_alive)
                    for replica in replicas:
                        self.workers.stop(replica)
                    if kept := self._keeper(worker.way):
                        kept.firm, kept.due = 0, None
        alive = set(self.workers.all())
        for unload in list(self._unloads):
            entry, stopped, names = unload
            if not alive.intersection(stopped):
                self.sessions.reply(entry, m.Unloaded(id=None, names=names))
                self._unloads.remove(unload)
        for kept in self._kept:
            if kept.due is not None and now > kept.due:
                self._load_again(kept)

    def _ended(self, worker: Worker, code: int) -> None:
        if worker.state == "stopping":
            log.info("%s has ended", worker.name)
            if worker.measured:
                for entry in self._waiters(worker):
                    self.sessions.reply(entry, worker.measured)
        elif worker.ready:
            self.deaths += 1
            why = worker.process.problem() or exit_words(code)
            log.error("the worker of %s died (%s)", worker.name, why)
            self._give_up(worker, WorkerDied(f"the worker of {worker.name} died ({why}); load it again"))
            self._again(worker, fault=True)
        elif problem := worker.process.problem():
            log.error("%s: %s", worker.name, problem)
            self.lose(worker, problem)
            self._again(worker, fault=True)
        else:
            self.deaths += 1
            doing = "measured" if worker.task else "loaded"
            log.error("the worker of %s died while it %s (%s)", worker.name, doing, exit_words(code))
            self.lose(
                worker,
                LoadFailed(
                    f"the worker died while it {doing} {worker.name} ({exit_words(code)}); the server's log may say why"
                ),
            )
            self._again(worker, fault=True)

    def _keeper(self, way: tuple[str, str, str]) -> Kept | None:
        return next((k for k in self._kept if k.way == way), None)

    def _again(self, worker: Worker, *, fault: bool) -> None:
        """A worker is gone: if its model is kept, it is loaded again in a while; not if it said at its first load that it cannot."""
        kept = None if worker.task or worker.draining else self._keeper(worker.way)
        if kept is None or kept.due or not (worker.load_ms or kept.restarts or fault):
            return
        if worker.load_ms and time.monotonic() > worker.began + worker.load_ms / 1000 + AGAIN_MAX_S:
            kept.delay_s = AGAIN_S
        kept.due = time.monotonic() + kept.delay_s
        log.info("%s is loaded again in %g s", worker.name, kept.delay_s)
        kept.delay_s = min(AGAIN_MAX_S, 2 * kept.delay_s)

    def _load_again(self, kept: Kept) -> None:
        kept.restarts += 1
        self.restarts += 1
        try:
            kept.model = self.catalogue.find(kept.model.name)  # which may be on this disk by now
            missing = kept.replicas - len(self.workers.matching(*kept.way))
            self._start_more(kept.model, kept.engine, kept.precision, missing, compiled=kept.compiled)
            kept.due = None
        except RequestError as e:
            log.warning("%s cannot be loaded again: %s", kept.name, e)
            kept.due = time.monotonic() + kept.delay_s
            kept.delay_s = min(AGAIN_MAX_S, 2 * kept.delay_s)

    def drain(self) -> None:
        """End what is loading, and load nothing again."""
        self._kept.clear()
        for worker in self.workers.all():
            if worker.state == "loading":
                self.lose(worker, Draining("the server is stopping"))
                self.workers.stop(worker)
