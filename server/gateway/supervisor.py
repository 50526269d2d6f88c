"""Loads, unloads and measurements: which workers start, who waits for them, when they end, and which start again."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from protocol import messages as m
from protocol.errors import (
    BadModel,
    BadRequest,
    Busy,
    Draining,
    LoadFailed,
    NotLoaded,
    RequestError,
    WorkerDied,
    from_code,
)
from server.catalogue.catalogue import Catalogue, Model
from server.catalogue.engines import CALIBRATES, check_compiled, choose_cache, choose_engine
from server.config import Config
from server.gateway.back import Back
from server.gateway.dispatch import Dispatch
from server.gateway.kept import AGAIN_MAX_S, AGAIN_S, Kept, KeptModels
from server.gateway.replicas import Replica, Replicas, exit_words
from server.gateway.sessions import Open, Sessions
from server.link import FromWorker, Ready, Sized, Started

log = logging.getLogger("gpt2d")

PAUSE_S = 2.0
"""Time between two looks from which this process has stood still itself."""
CUT_S = 0.5
"""Time after which a worker is lost whose connection broke, and whose process has not ended."""


@dataclass(eq=False)
class Unload:
    """Unload request that is answered when its workers have ended."""

    entry: Open
    stopped: list[Replica]
    names: list[str]


@dataclass(eq=False)
class Supervisor:
    """Starts, keeps and ends the workers that requests ask for. Used by the gateway's thread only."""

    config: Config
    catalogue: Catalogue
    replicas: Replicas
    sessions: Sessions
    back: Back
    dispatch: Dispatch
    _unloads: list[Unload] = field(default_factory=list)
    _kept: KeptModels = field(default_factory=KeptModels)
    _watched: float = field(default_factory=time.monotonic)
    restarts: int = 0
    """Number of times that a kept model was loaded again."""
    deaths: int = 0
    """Number of workers that died, or were ended because they were stuck."""

    def preload(self, ways: list[tuple[Model, str, str, int]]) -> None:
        """Load models that stay, each with its number of replicas. Raises: NoMemory, LoadFailed, BadModel."""
        for way in ways:
            kept = Kept(*way, firm=way[-1])
            self._start_more(
                kept.model, kept.engine, kept.precision, kept.replicas - len(self.replicas.matching(*kept.way))
            )
            self._kept.put(kept)
            self._note_loaded()

    # Requests

    def load(self, entry: Open, request: m.Load) -> None:
        engine, precision = choose_engine(request.engine, request.precision)
        if request.compile:
            check_compiled(engine, precision)
        model = self.catalogue.find(request.model)
        there = self.replicas.matching(model.name, engine, precision)
        if there and request.compile and not there[0].compiled:
            raise BadRequest(f"{there[0].name} is loaded without `compile`; unload it first")
        kept = self._kept.find((model.name, engine, precision))
        before = next((known.cache for known in (*there, kept) if known), None)
        cache = choose_cache(engine, precision, request.cache or before)
        if there and cache != there[0].cache:
            raise BadRequest(
                f"{there[0].name} is loaded with a KV cache of {there[0].cache}, not of {cache}; unload it first"
            )
        wanted = request.replicas or len(there) or (kept.replicas if kept else 1)
        compiled = next((known.compiled for known in (*there, kept) if known), False) or request.compile
        fresh = self._start_more(model, engine, precision, wanted - len(there), compiled=compiled, cache=cache)
        if request.replicas and not kept:
            kept = Kept(model, engine, precision, firm=sum(replica.ready is not None for replica in there))
            self._kept.put(kept)
        if kept and (request.replicas or fresh):
            kept.due = None
            kept.replicas = wanted
            kept.firm = min(kept.firm, wanted)
            kept.compiled, kept.cache = compiled, cache
        for replica in sorted(there, key=self._worth)[: max(0, len(there) - wanted)]:
            self._drain_one(replica)
        there = [replica for replica in there if not replica.draining]
        if request.replicas is None and any(replica.ready for replica in there):
            waits_for = []
        else:
            waits_for = [replica for replica in (*there, *fresh) if not replica.ready]
        for replica in waits_for:
            replica.waiters.append(entry.key)
        if not waits_for:
            self._answer_load(entry, there, already=True)

    def _start_more(
        self,
        model: Model,
        engine: str,
        precision: str,
        count: int,
        *,
        compiled: bool = False,
        cache: str = "",
    ) -> list[Replica]:
        """Start `count` workers, or none of them. Raises: NoMemory, LoadFailed, BadModel."""
        fresh: list[Replica] = []
        try:
            for _ in range(count):
                fresh.append(self.replicas.start(model, engine, precision, compiled=compiled, cache=cache, share=count))
                log.info("load %s", fresh[-1].name)
        except RequestError:
            for replica in fresh:
                self.replicas.stop(replica)
            raise
        return fresh

    def _worth(self, replica: Replica) -> tuple[bool, int, int]:
        """Return a key that sorts replicas: those that are let go first come first."""
        return replica.ready is not None, self.sessions.held(replica.identity), -replica.number

    def _drain_one(self, replica: Replica) -> None:
        """Give a replica no new requests, and stop it when it has finished those that it has."""
        log.info("%s: replica %d is let go", replica.name, replica.number)
        replica.draining = True
        self._settle(replica)

    def _settle(self, replica: Replica) -> None:
        """Clear who waits for a worker; loads that wait for no other worker are answered."""
        waiters = self._waiters(replica)
        replica.waiters.clear()
        replicas = self.replicas.matching(*replica.way)
        for entry in waiters:
            if not any(entry.key in other.waiters for other in replicas):
                self._answer_load(entry, replicas, already=False)

    def _answer_load(self, entry: Open, replicas: list[Replica], *, already: bool) -> None:
        ready = [(replica, replica.ready) for replica in replicas if replica.ready]
        if ready:
            if kept := self._kept.find(ready[0][0].way):
                kept.firm = min(kept.replicas, max(kept.firm, len(ready)))
            replica, facts = max(ready, key=lambda found: found[0].began)
            self.sessions.reply(entry, replica.loaded(facts, already=already, replicas=len(ready)))
        else:
            fewer = LoadFailed("another client wanted fewer replicas, and none is loaded yet; try again")
            self.sessions.fail(entry, fewer)

    def measure(self, entry: Open, request: m.Measure) -> None:
        engine, precision = choose_engine(request.engine, request.precision)
        self._begin(entry, request, engine, precision, request.cache)

    def calibrate(self, entry: Open, request: m.Calibrate) -> None:
        self._begin(entry, request, *choose_engine(*CALIBRATES))

    def _begin(self, entry: Open, request: m.Task, engine: str, precision: str, cache: str | None = None) -> None:
        """Start a process for a task."""
        model = self.catalogue.find(request.model)
        if not model.on_disk:
            raise NotLoaded(f"{model.name} is not on this server's disk; load it first, which downloads it")
        # One at a time: each is as large as two models.
        if busy := next((r for r in self.replicas.all() if r.task and r.state != "stopping"), None):
            raise Busy(f"{busy.name} {busy.words.under_way}; try again when that is done")
        replica = self.replicas.start(model, engine, precision, cache=cache, task=request)
        log.info("begin %s", replica.name)
        replica.waiters.append(entry.key)

    def unload(self, entry: Open, request: m.Unload) -> None:
        """Stop what matches; the answer follows when the processes have ended and the memory is free."""
        which = (request.model, request.engine, request.precision)
        found = [r for r in self.replicas.models() if r.matches(*which)]
        waiting = [kept.name for kept in self._kept.matching(which) if kept.due]
        if not found and not waiting:
            raise NotLoaded(f"{request.model} is not loaded")
        self._kept.drop(which)
        for replica in found:
            if replica.state != "stopping":
                log.info("unload %s", replica.name)
                self.end(replica, NotLoaded(f"{replica.name} was unloaded"), retry=False, fault=False)
        self._note_loaded()
        names = list(dict.fromkeys(r.name for r in found)) or waiting
        self._unloads.append(Unload(entry, found, names))

    def abandon(self, entry: Open) -> None:
        """End what was started for a request alone, which nobody waits for any more."""
        for replica in self.replicas.all():
            if entry.key in replica.waiters:
                replica.waiters.remove(entry.key)
                kept = None if replica.task else self._kept.find(replica.way)
                stays = kept and len(self.replicas.matching(*replica.way)) <= kept.firm
                if not replica.waiters and not replica.load_ms and not stays:
                    log.info("%s: abandoned", replica.name)
                    self.replicas.stop(replica)
                    if kept:
                        self._kept.take_back(kept, len(self.replicas.matching(*kept.way)))

    # What the workers say of themselves

    def heard(self, replica: Replica, message: FromWorker) -> None:
        """Act on a message of a worker about itself. Raises: NoMemory, and what sending raises."""
        if isinstance(message, m.Progress):
            self._pass_on(replica, message)
        elif isinstance(message, Sized):
            self.replicas.resize(replica, message.memory_bytes)
        elif isinstance(message, Started):
            replica.node = message.node
            if replica.task:
                self.back.send(replica, replica.task)
        elif isinstance(message, m.Measured | m.Calibrated):
            found = ""
            if isinstance(message, m.Measured):
                found = f": perplexity {message.fidelity.perplexity_change_pct:+.2f} %"
            log.info("%s%s", replica.name, found)
            # Answered when the process has ended: then its memory is free, and another can begin.
            replica.outcome = message
            self.replicas.stop(replica)
        elif isinstance(message, Ready) and replica.state == "loading":
            replica.state, replica.ready = "ready", message
            replica.used = time.monotonic()
            replica.load_ms = (replica.used - replica.began) * 1000
            megabytes = message.rss_bytes / 1e6
            log.info("loaded %s in %.0f ms, %.0f MB, on %s", replica.name, replica.load_ms, megabytes, replica.node)
            self._settle(replica)
            self._note_loaded()
        elif isinstance(message, m.Failure):
            log.error("%s", message.message)
            self.failed(replica, from_code(message.code, message.message))

    def _pass_on(self, replica: Replica, progress: m.Progress) -> None:
        """Send a worker's progress to those that wait for it: of replicas that load side by side, the first one's."""
        for entry in self._waiters(replica):
            first = next(r for r in self.replicas.all() if entry.key in r.waiters)
            if first is replica and isinstance(entry.request, m.Load | m.Task) and entry.request.stream:
                self.sessions.reply(entry, progress)

    def connected(self, replica: Replica, routing_id: bytes, fd: int) -> None:
        """Note the connection of a worker's process: the first, or a new one that a cluster started elsewhere."""
        if replica.state == "stopping":
            replica.process.kill()  # it was started again while it was stopping
        elif replica.connection:
            self._renew(replica)
        replica.connection, replica.fd = routing_id, fd

    def failed(self, replica: Replica, error: RequestError) -> None:
        """End a worker that cannot go on: it says so itself, or what it says cannot be used."""
        if replica.state == "stopping":
            return
        if replica.ready:
            self.deaths += 1
            died = WorkerDied(f"the worker of {replica.name} died ({error}); load it again")
            self.end(replica, died, retry=True, fault=True)
        else:
            self.end(replica, error, retry=False, fault=self._has_served(replica))

    def end(self, replica: Replica, error: RequestError, *, retry: bool, fault: bool) -> None:
        """End a worker, if it has not ended yet. Every end of a worker goes through here.

        Its requests and the loads that wait for it end in the error; with `retry`, another replica begins those whose
        text has not been sent. With `fault`, its model is loaded again after a while if it is kept.
        """
        self.replicas.stop(replica)  # first, so that no more is handed to it
        self._end_requests(replica, error, retry=retry)
        waiters = self._waiters(replica)
        replica.waiters.clear()
        for entry in waiters:
            self.sessions.fail(entry, error)
        for entry in waiters:
            self.abandon(entry)  # what was started for these alone ends, too
        if waiters and not replica.task and (kept := self._kept.find(replica.way)):
            self._kept.take_back(kept, len(self.replicas.matching(*kept.way)))
        if fault:
            self._again(replica)

    def _end_requests(self, replica: Replica, error: RequestError, *, retry: bool) -> None:
        for entry in self.sessions.of_replica(replica.identity):
            if not (retry and self.dispatch.begin_elsewhere(entry, replica)):
                self.sessions.fail(entry, error)

    def _renew(self, replica: Replica) -> None:
        """Replace a process that is lost or out of reach. Where its launcher starts another, loads wait for that."""
        if not replica.process.renew(replica.connection.decode()):
            replica.cut = 0.0  # it ends, which `watch` will find
            return
        self.deaths += 1
        node = replica.node or "a node"
        log.error("the worker of %s on %s is lost: its connection broke", replica.name, node)
        replica.forget_process()
        error = WorkerDied(f"the worker of {replica.name} on {node} was lost; another is begun, try again")
        self._end_requests(replica, error, retry=True)

    def _waiters(self, replica: Replica) -> list[Open]:
        return [entry for key in replica.waiters if (entry := self.sessions.by_key(key))]

    # Time

    def watch(self) -> None:
        """Deal with processes that have ended, do not move or are not used, and load again what is due."""
        now = time.monotonic()
        if now > self._watched + PAUSE_S:  # this process stood still, and perhaps the workers with it
            for replica in self.replicas.all():
                replica.heard += now - self._watched
        self._watched = now
        for replica, code in self.replicas.ended():
            self._ended(replica, code)
        for replica in self.replicas.models():
            if progress := replica.process.progress():
                self._pass_on(replica, progress)
            if replica.state != "stopping" and replica.cut and now > replica.cut + CUT_S:
                self._renew(replica)
            if replica.state != "stopping" and replica.draining and not self.sessions.held(replica.identity):
                self.replicas.stop(replica)
            still = now - replica.heard
            if self.config.stuck_seconds and replica.state == "ready" and still > self.config.stuck_seconds:
                self.deaths += 1
                log.error("the worker of %s has not moved for %.0f s: it is ended", replica.name, still)
                self.replicas.kill(replica)
                name, seconds = replica.name, f"{still:.0f} s"
                stuck = WorkerDied(f"the worker of {name} had not moved for {seconds} and was ended; load it again")
                self.end(replica, stuck, retry=True, fault=True)
            if self.config.keep_alive is not None and replica.serves:
                replicas = self.replicas.matching(*replica.way)
                idle = all(r.ready and not self.sessions.held(r.identity) for r in replicas)
                if idle and now > max(r.used for r in replicas) + self.config.keep_alive:
                    log.info("%s was not used for %g s: unload", replica.name, self.config.keep_alive)
                    for unused in replicas:
                        self.replicas.stop(unused)
                    if kept := self._kept.find(replica.way):
                        kept.firm, kept.due = 0, None
        alive = set(self.replicas.all())
        for unload in list(self._unloads):
            if not alive.intersection(unload.stopped):
                self.sessions.reply(unload.entry, m.Unloaded(id=None, names=unload.names))
                self._unloads.remove(unload)
        for kept in self._kept:
            if kept.due is not None and now > kept.due:
                self._load_again(kept)
        self._note_loaded()

    def _note_loaded(self) -> None:
        """Note what is loaded, and what will be again, for requests that do not name their model in full."""
        serving = [replica.way for replica in self.replicas.models() if replica.serves]
        again = [k.way for k in self._kept if k.firm and (k.due or self.replicas.matching(*k.way))]
        self.replicas.defaults.look([*serving, *again])

    def _ended(self, replica: Replica, code: int) -> None:
        """Deal with a worker whose process has ended."""
        if replica.state == "stopping":
            log.info("%s has ended", replica.name)
            if replica.outcome:
                for entry in self._waiters(replica):
                    self.sessions.reply(entry, replica.outcome)
            return
        problem, why = replica.process.problem(), exit_words(code)
        error: RequestError
        if replica.ready:
            self.deaths += 1
            error = WorkerDied(f"the worker of {replica.name} died ({problem or why}); load it again")
        elif problem:
            error = problem
        else:
            self.deaths += 1
            doing = replica.words.did if replica.task else "loaded"
            error = LoadFailed(f"the worker died while it {doing} {replica.name} ({why}); the server's log may say why")
        log.error("%s: %s", replica.name, error)
        cannot = isinstance(problem, BadModel) and not self._has_served(replica)  # now or later
        self.end(replica, error, retry=True, fault=not cannot)

    def _has_served(self, replica: Replica) -> bool:
        """Return whether it, or one before it, was ready once: then it may be able to load again later."""
        kept = None if replica.task else self._kept.find(replica.way)
        return bool(replica.load_ms or (kept and kept.restarts))

    def _again(self, replica: Replica) -> None:
        """Arrange that its model is loaded again after a while, if it is kept."""
        kept = None if replica.task or replica.draining else self._kept.find(replica.way)
        if kept is None or kept.due or len(self.replicas.matching(*kept.way)) >= kept.replicas:
            return
        if replica.load_ms and time.monotonic() > replica.began + replica.load_ms / 1000 + AGAIN_MAX_S:
            kept.delay_s = AGAIN_S
        seconds = kept.postpone()
        log.info("%s is loaded again in %g s", replica.name, seconds)

    def _load_again(self, kept: Kept) -> None:
        kept.restarts += 1
        self.restarts += 1
        try:
            kept.model = self.catalogue.find(kept.model.name)  # it may be on this disk by now
            missing = kept.replicas - len(self.replicas.matching(*kept.way))
            self._start_more(kept.model, kept.engine, kept.precision, missing, compiled=kept.compiled, cache=kept.cache)
            kept.due = None
        except RequestError as e:
            log.warning("%s cannot be loaded again: %s", kept.name, e)
            kept.postpone()

    def drain(self) -> None:
        """End what is loading, and load nothing again."""
        self._kept.clear()
        for replica in self.replicas.all():
            if replica.state == "loading":
                self.end(replica, Draining("the server is stopping"), retry=False, fault=False)
