"""What becomes of `load`, `unload` and `measure`: which workers begin, who waits for them, when they end, and which begin again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol import messages as m
from protocol.errors import BadRequest, Busy, Draining, LoadFailed, NotLoaded, RequestError, WorkerDied, from_code
from protocol.link import ForWorker, FromWorker, Ready, Sized, Started
from server.catalogue import Catalogue, Model, check_compiled, choose_engine
from server.config import Config
from server.sessions import Open, Sessions
from server.workers import Worker, Workers, agree, exit_words

log = logging.getLogger("gpt2d")

AGAIN_S, AGAIN_MAX_S = 1.0, 60.0
"""A preloaded model whose worker died is loaded again after so long; twice as long each time, until one has stayed up for the second."""
PAUSE_S = 2.0


@dataclass(eq=False)
class Preload:
    """A model that is to stay loaded."""

    model: Model
    engine: str
    precision: str
    worker: Worker | None = None
    due: float | None = None
    """When it is loaded again (monotonic)."""
    delay_s: float = AGAIN_S
    restarts: int = 0

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.engine}/{self.precision}"

    def matches(self, model: str | None, engine: str | None, precision: str | None) -> bool:
        return agree((model, engine, precision), (self.model.name, self.engine, self.precision))


@dataclass(eq=False)
class Loads:
    """Used by the gateway's thread only. `tell` sends a worker something."""

    config: Config
    catalogue: Catalogue
    workers: Workers
    sessions: Sessions
    tell: Callable[[Worker, ForWorker], None]
    _unloads: list[tuple[Open, list[Worker], list[str]]] = field(default_factory=list)
    _preloads: list[Preload] = field(default_factory=list)
    _watched: float = field(default_factory=time.monotonic)
    restarts: int = 0
    """How often a preloaded model was loaded again."""
    deaths: int = 0
    """How many workers died, or were ended because they were stuck."""

    def preload(self, ways: list[tuple[Model, str, str]]) -> None:
        """Load models that stay. Raises: NoMemory, OSError."""
        for model, engine, precision in ways:
            if not self.workers.matching(model.name, engine, precision):
                preload = Preload(model, engine, precision)
                preload.worker = self.workers.start(model, engine, precision)
                self._preloads.append(preload)

    # Requests

    def load(self, entry: Open, request: m.Load) -> None:
        engine, precision = choose_engine(request.engine, request.precision)
        if request.compile:
            check_compiled(engine, precision)
        model = self.catalogue.find(request.model)
        worker = next(iter(self.workers.matching(model.name, engine, precision)), None)
        if worker and request.compile and not worker.compiled:
            raise BadRequest(f"{worker.name} is loaded without `compile`; unload it first")
        if worker and worker.ready:
            self.sessions.reply(entry, worker.loaded(worker.ready, already=True))
            return
        if worker is None:
            worker = self._start(model, engine, precision, compiled=request.compile)
            log.info("load %s", worker.name)
            for preload in self._preloads:
                if preload.due and preload.matches(model.name, engine, precision):
                    preload.worker, preload.due = worker, None
        worker.waiters.append(entry.key)

    def measure(self, entry: Open, request: m.Measure) -> None:
        engine, precision = choose_engine(request.engine, request.precision)
        model = self.catalogue.find(request.model)
        if model.folder is None:
            raise NotLoaded(f"{model.name} is not on this server's disk; load it first, which downloads it")
        # One at a time: each is as large as two models.
        if busy := next((w for w in self.workers.all() if w.task and w.state != "stopping"), None):
            raise Busy(f"{busy.name} is being measured; try again when that is done")
        worker = self._start(model, engine, precision, task=request)
        log.info("measure %s", worker.name)
        worker.waiters.append(entry.key)

    def _start(self, model: Model, engine: str, precision: str, *, compiled: bool = False, task: m.Measure | None = None) -> Worker:
        try:
            return self.workers.start(model, engine, precision, compiled=compiled, task=task)
        except OSError as e:
            raise LoadFailed(f"no worker process can be started: {e}") from None

    def unload(self, entry: Open, request: m.Unload) -> None:
        """Answered when the memory is free, which is when the processes have ended."""
        which = (request.model, request.engine, request.precision)
        found = [w for w in self.workers.models() if w.matches(*which)]
        waiting = [p for p in self._preloads if p.due and p.matches(*which)]
        if not found and not waiting:
            raise NotLoaded(f"{request.model} is not loaded")
        self._preloads = [p for p in self._preloads if not p.matches(*which)]
        for worker in found:
            if worker.state != "stopping":
                log.info("unload %s", worker.name)
                self.lose(worker, NotLoaded(f"{worker.name} was unloaded"))
                self.workers.stop(worker)
        self._unloads.append((entry, found, [w.name for w in found] or [p.name for p in waiting]))

    def abandon(self, entry: Open) -> None:
        """Nobody waits for that request any more: what began for it alone ends."""
        for worker in self.workers.all():
            if entry.key in worker.waiters:
                worker.waiters.remove(entry.key)
                if not worker.waiters and not worker.ready and not self._keeper(worker):
                    log.info("%s: abandoned", worker.name)
                    self.workers.stop(worker)

    # What the workers say of themselves

    def heard(self, worker: Worker, message: FromWorker) -> None:
        """Raises: NoMemory, and what `tell` raises."""
        if isinstance(message, m.Progress):
            for entry in self._waiters(worker):
                if isinstance(entry.request, m.Load | m.Measure) and entry.request.stream:
                    self.sessions.reply(entry, message)
        elif isinstance(message, Sized):
            self.workers.resize(worker, message.memory_bytes)
        elif isinstance(message, Started) and worker.task:
            self.tell(worker, worker.task)
        elif isinstance(message, m.Measured):
            log.info("%s: perplexity %+.2f %%", worker.name, message.fidelity.perplexity_change_pct)
            worker.measured = message  # told when the process has ended: then its memory is free, and another can be measured
            self.workers.stop(worker)
        elif isinstance(message, Ready) and worker.state == "loading":
            worker.state, worker.ready = "ready", message
            worker.used = time.monotonic()
            worker.load_ms = (worker.used - worker.began) * 1000
            log.info("loaded %s in %.0f ms, %.0f MB", worker.name, worker.load_ms, message.rss_bytes / 1e6)
            for entry in self._waiters(worker):
                self.sessions.reply(entry, worker.loaded(message, already=False))
            worker.waiters.clear()
        elif isinstance(message, m.Failure):
            log.error("%s", message.message)
            self.lose(worker, from_code(message.code, message.message))
            self.workers.stop(worker)
            self._again(worker)

    def lose(self, worker: Worker, error: RequestError) -> None:
        """Fail everything that a worker holds or that waits for it."""
        for entry in (*self.sessions.of_worker(worker.identity), *self._waiters(worker)):
            self.sessions.fail(entry, error)
        worker.waiters.clear()

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
            still = now - worker.heard
            if self.config.stuck_seconds and worker.state == "ready" and still > self.config.stuck_seconds:
                self.deaths += 1
                log.error("the worker of %s has not moved for %.0f s: it is ended", worker.name, still)
                self.lose(worker, WorkerDied(f"the worker of {worker.name} had not moved for {still:.0f} s and was ended; load it again"))
                self._again(worker)
                self.workers.kill(worker)
            idle = worker.state == "ready" and not self.sessions.of_worker(worker.identity)
            if self.config.keep_alive is not None and idle and now > worker.used + self.config.keep_alive:
                log.info("%s was not used for %g s: unload", worker.name, self.config.keep_alive)
                self.workers.stop(worker)
        alive = set(self.workers.all())
        for unload in list(self._unloads):
            entry, stopped, names = unload
            if not alive.intersection(stopped):
                self.sessions.reply(entry, m.Unloaded(id=None, names=names))
                self._unloads.remove(unload)
        for preload in self._preloads:
            if preload.due is not None and now > preload.due:
                self._load_again(preload)

    def _ended(self, worker: Worker, code: int) -> None:
        if worker.state == "stopping":
            log.info("%s has ended", worker.name)
            if worker.measured:
                for entry in self._waiters(worker):
                    self.sessions.reply(entry, worker.measured)
        elif worker.ready:
            self.deaths += 1
            log.error("the worker of %s died (%s)", worker.name, exit_words(code))
            self.lose(worker, WorkerDied(f"the worker of {worker.name} died ({exit_words(code)}); load it again"))
            self._again(worker)
        else:
            self.deaths += 1
            doing = "measured" if worker.task else "loaded"
            log.error("the worker of %s died while it %s (%s)", worker.name, doing, exit_words(code))
            self.lose(
                worker, LoadFailed(f"the worker died while it {doing} {worker.name} ({exit_words(code)}); the server's log may say why")
            )
            self._again(worker)

    def _keeper(self, worker: Worker) -> Preload | None:
        return next((p for p in self._preloads if p.worker is worker), None)

    def _again(self, worker: Worker) -> None:
        """A worker is gone: if its model was preloaded, and was ready once, it is loaded again in a while."""
        preload = self._keeper(worker)
        if preload is None or not (worker.ready or preload.restarts):
            return
        if worker.ready and time.monotonic() > worker.began + worker.load_ms / 1000 + AGAIN_MAX_S:
            preload.delay_s = AGAIN_S
        preload.worker, preload.due = None, time.monotonic() + preload.delay_s
        log.info("%s is loaded again in %g s", worker.name, preload.delay_s)
        preload.delay_s = min(AGAIN_MAX_S, 2 * preload.delay_s)

    def _load_again(self, preload: Preload) -> None:
        preload.restarts += 1
        self.restarts += 1
        try:
            preload.worker, preload.due = self.workers.start(preload.model, preload.engine, preload.precision), None
        except (RequestError, OSError) as e:
            log.warning("%s cannot be loaded again: %s", preload.name, e)
            preload.due = time.monotonic() + preload.delay_s
            preload.delay_s = min(AGAIN_MAX_S, 2 * preload.delay_s)

    def drain(self) -> None:
        """End what is loading, and load nothing again."""
        self._preloads.clear()
        for worker in self.workers.all():
            if worker.state == "loading":
                self.lose(worker, Draining("the server is stopping"))
                self.workers.stop(worker)
