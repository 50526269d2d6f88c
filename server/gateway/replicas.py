"""Table of worker processes, one for each replica of a loaded model: launches and ends them, reserves their memory."""

from __future__ import annotations

import errno
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from protocol import messages as m
from protocol.codec import type_of
from protocol.errors import BadRequest, LoadFailed, NoMemory, NotLoaded
from protocol.keys import CurveKeys
from server.catalogue.architecture import OVERHEAD_BYTES, Architecture
from server.catalogue.catalogue import Model
from server.catalogue.engines import REFERENCE, TRAITS, choose_cache, choose_engine
from server.config import Config
from server.gateway.defaults import Defaults, agree, in_words
from server.gateway.routing import Known
from server.launch.launcher import Launcher, Process
from server.launch.local import machine_memory
from server.launch.spec import CUT_OFF, UNREACHED, Spec
from server.link import Beat, Ready


@dataclass(frozen=True)
class Words:
    """A task in words."""

    noun: str
    doing: str
    did: str
    under_way: str
    done: str


WORDS = {
    "measure": Words("the fidelity", "measuring", "measured", "is being measured", "is measured"),
    "calibrate": Words("the calibration", "calibrating", "was busy with", "is under way", "is done"),
}
ROWS_SHARE = 8
"""The rows of one model take at most one part in this many of the memory by default."""
STOP_S = 2.0
"""Time that a worker may take to end by itself before it is killed."""


@dataclass(eq=False)
class Replica:
    """Replica of a model that is loading, ready or stopping."""

    model: str
    engine: str
    precision: str
    identity: str
    process: Process
    reserved: int
    """Bytes that it may need at most."""
    rows: int | None
    """Number of rows; None: as many as will fit, when its shape is known."""
    number: int = 0
    node: str = ""
    """Name of the machine it runs on; empty before it has said so."""
    connection: bytes = b""
    """Routing id of its process: its identity, with a suffix for each further process that a cluster begins for it."""
    former: deque[bytes] = field(default_factory=lambda: deque(maxlen=16))
    """Routing ids of its former processes: what they still say is ignored."""
    fd: int = -1
    cut: float = 0.0
    """Time when its connection broke (monotonic); 0: it is not broken."""
    draining: bool = False
    """Whether it gets no new requests and ends when it has finished those that it has."""
    known: Known = field(default_factory=Known)
    state: Literal["loading", "ready", "stopping"] = "loading"
    ready: Ready | None = None
    began: float = field(default_factory=time.monotonic)
    load_ms: float = 0.0
    beat: Beat | None = None
    used: float = field(default_factory=time.monotonic)
    """Time when it last had something to do (monotonic)."""
    heard: float = field(default_factory=time.monotonic)
    waiters: list[int] = field(default_factory=list)
    """Keys of the requests to load, or of its task, that wait for it."""
    compiled: bool = False
    cache: str = ""
    """What its KV cache is made of."""
    task: m.Task | None = None
    """What it was started for; it serves no requests."""
    outcome: m.Measured | m.Calibrated | None = None
    stop_by: float = 0.0

    @property
    def way(self) -> tuple[str, str, str]:
        """Model, engine and precision: the same for all replicas of a model."""
        return self.model, self.engine, self.precision

    @property
    def name(self) -> str:
        name = "/".join(self.way)
        return f"{self.words.noun} of {name}" if self.task else name

    @property
    def words(self) -> Words:
        """Return its task in words; without one, those of a measurement."""
        return WORDS[type_of(self.task) if self.task else "measure"]

    @property
    def serves(self) -> bool:
        """Whether it takes requests."""
        return self.state == "ready" and not self.draining

    def matches(self, model: str | None, engine: str | None, precision: str | None) -> bool:
        return agree((model, engine, precision), self.way)

    @property
    def rss_bytes(self) -> int:
        """Resident bytes, as it said last."""
        last = self.beat or self.ready
        return last.rss_bytes if last else 0

    def forget_process(self) -> None:
        """Go back to loading: its process is gone, and another is started elsewhere."""
        self.former.append(self.connection)
        self.state = "loading"
        self.ready, self.beat = None, None
        self.node = ""
        self.connection, self.fd = b"", -1
        self.cut = 0.0
        self.known = Known()
        self.began = self.heard = time.monotonic()

    def loaded(self, ready: Ready, *, already: bool, replicas: int) -> m.Loaded:
        """Return the answer to a load."""
        return m.Loaded(
            id=None, model=self.model, engine=self.engine, precision=self.precision,
            digest=ready.digest, context=ready.context, rows=ready.rows, threads=ready.threads,
            rss_bytes=self.rss_bytes, quantised_share=ready.quantised_share, disk_bytes=ready.disk_bytes,
            load_ms=self.load_ms, already=already, replicas=replicas, notices=list(ready.notices),
            byte_level=ready.byte_level, calibrated=ready.calibrated, cache=self.cache,
            instruction_set=ready.instruction_set,
        )  # fmt: skip

    def health(self) -> m.WorkerHealth:
        return m.WorkerHealth(
            model=self.model, engine=self.engine, precision=self.precision,
            state="stopping" if self.draining else self.state, replica=self.number, node=self.node,
            moved_ms_ago=(time.monotonic() - self.heard) * 1000,
            running=self.beat.running if self.beat else 0, waiting=self.beat.waiting if self.beat else 0,
            byte_level=self.ready is not None and self.ready.byte_level,
            calibrated=self.ready is not None and self.ready.calibrated, cache=self.cache,
            instruction_set=self.ready.instruction_set if self.ready else "",
        )  # fmt: skip

    def stats(self) -> m.WorkerStats:
        beat = self.beat
        return m.WorkerStats(
            model=self.model, engine=self.engine, precision=self.precision, rss_bytes=self.rss_bytes,
            requests=beat.requests if beat else 0, prompt_tokens=beat.prompt_tokens if beat else 0,
            new_tokens=beat.new_tokens if beat else 0, busy_ms=beat.busy_ms if beat else 0.0,
            replica=self.number, node=self.node,
        )  # fmt: skip


class Replicas:
    """Table of workers. Used by the gateway's thread only."""

    def __init__(self, config: Config, keys: CurveKeys, endpoint: str, launcher: Launcher, measurer: Launcher) -> None:
        """Begin empty. `measurer` starts workers that measure: here, where the model's files and the records are."""
        self._config, self._keys = config, keys
        self._endpoint = endpoint
        self._launcher, self._measurer = launcher, measurer
        self._replicas: dict[str, Replica] = {}
        self.defaults = Defaults()

    def all(self) -> list[Replica]:
        return list(self._replicas.values())

    def models(self) -> list[Replica]:
        """Return all but those with a task."""
        return [r for r in self._replicas.values() if r.task is None]

    def start(
        self,
        model: Model,
        engine: str,
        precision: str,
        *,
        compiled: bool = False,
        cache: str | None = None,
        task: m.Task | None = None,
        share: int = 1,
    ) -> Replica:
        """Launch a worker and reserve its memory: to measure, that of one row and of full precision beside it.

        `model` must be one without a problem. All replicas have the same number of rows, chosen for the first so
        that `share` replicas fit.

        Raises: NoMemory, LoadFailed, BadModel where the engine cannot compute it, or has no such cache.
        """
        launcher = self._launcher_for(task)
        arch, config = model.architecture, self._config
        if arch:
            arch.check_engine(engine)
        cache = choose_cache(engine, precision, cache)
        room = self._room(launcher)
        others = [r for r in self.models() if r.way == (model.name, engine, precision)]
        known = TRAITS[engine].rows(config.rows) or next((r.rows for r in others), None)
        rows = 1 if task else known
        need = OVERHEAD_BYTES
        if arch:
            rows = rows or arch.fitting_rows(engine, precision, room // share, rows_share(config) // share, cache)
            need = arch.loading_bytes(engine, precision, rows, cache)
            if isinstance(task, m.Measure):
                need += arch.memory_bytes(*REFERENCE, 1)
            elif task:
                need = arch.calibration_bytes()
        if need > room:
            name = f"{model.name}/{engine}/{precision}"
            what = f"{WORDS[type_of(task)].doing} {name}" if task else name
            other = "" if task or arch is None else self._instead(arch, engine, precision, room)
            raise self._no_memory(what, need, room, other)
        identity = secrets.token_hex(16)
        spec = Spec(
            endpoint=self._endpoint, server_key=self._keys.public, identity=identity,
            model=model.name, folder=str(model.folder or ""), hub_cache=str(config.hub_cache),
            models_dir=str(config.models_dir), engine=engine, precision=precision, compiled=compiled, cache=cache,
            task=type_of(task) if task else "", threads=config.threads, rows=rows, room=room, share=rows_share(config),
            base=model.base.name if model.base else "", base_folder=str(model.base_folder or ""),
            cache_dir=str(config.cache_dir), cache_bytes=config.cache_bytes,
            instruction_set=config.instruction_set or "",
        )  # fmt: skip
        taken = {r.number for r in others}
        number = next(i for i in range(len(taken) + 1) if i not in taken)
        try:
            process = launcher.start(spec, need)
        except OSError as e:
            hint = "; allow the server more of them (`ulimit -n`)" if e.errno in (errno.EMFILE, errno.ENFILE) else ""
            raise LoadFailed(f"no worker process can be started: {e.strerror or e}{hint}") from None
        replica = Replica(
            model.name,
            engine,
            precision,
            identity,
            process,
            need,
            rows,
            number,
            compiled=compiled,
            cache=cache,
            task=task,
        )
        self._replicas[identity] = replica
        return replica

    def resize(self, replica: Replica, need: int) -> None:
        """Reserve the bytes that a worker says it needs; it may have taken part of them already. Raises: NoMemory."""
        room = self._room(self._launcher_for(replica.task))
        if need - replica.reserved > room:
            raise self._no_memory(replica.name, need, room)
        replica.reserved = need

    def _launcher_for(self, task: m.Task | None) -> Launcher:
        return self._measurer if task else self._launcher

    def _room(self, launcher: Launcher) -> int:
        """Return the bytes that a new worker may take: what is free, less what others have reserved and not taken."""
        same = [r for r in self._replicas.values() if self._launcher_for(r.task) is launcher]
        room = launcher.free_memory(sum(max(0, r.reserved - r.rss_bytes) for r in same))
        if self._config.max_memory is not None:
            room = min(room, int(self._config.max_memory * 1e9) - sum(r.reserved for r in self._replicas.values()))
        return max(0, room)

    def _no_memory(self, name: str, need: int, room: int, other: str = "") -> NoMemory:
        """Return the error, with what could be done about it; `other` is what could be loaded instead."""
        loaded = dict.fromkeys(f"{r.name} ({r.reserved / 1e6:.0f} MB)" for r in self.models() if r.reserved)
        ways = [f"unload {' or '.join(loaded)}"] if loaded else []
        ways += [f"wait until {r.name} {r.words.done}" for r in self._replicas.values() if r.task]
        ways += [f"choose {other}"] if other else []
        advice = ", or ".join([*ways, "choose a smaller model"])
        there = f"; {places}" if (places := self._launcher.places()) else ""
        return NoMemory(
            f"{name} needs about {need / 1e6:.0f} MB; {room / 1e6:.0f} MB are free for it{there}. You could {advice}."
        )

    def _instead(self, arch: Architecture, engine: str, precision: str, room: int) -> str:
        """Return the other precisions of an engine that fit into `room` bytes, and the default engine's; "": none."""
        usual = choose_engine(None, None)
        ways = {usual: "/".join(usual)} | {(engine, p): p for p in TRAITS[engine].precisions}
        del ways[engine, precision]
        sizes = {name: arch.loading_bytes(*way, self._config.rows or 1) for way, name in ways.items()}
        return " or ".join(f"{name} ({size / 1e6:.0f} MB)" for name, size in sizes.items() if size <= room)

    def by_identity(self, identity: str) -> Replica | None:
        return self._replicas.get(identity)

    def by_connection(self, routing_id: bytes) -> Replica | None:
        """Return the worker whose process has that routing id, or whose new process it is."""
        replica = self._replicas.get(routing_id.decode("ascii", "replace").partition(".")[0])
        return None if replica and routing_id in replica.former else replica

    def matching(self, model: str | None, engine: str | None, precision: str | None) -> list[Replica]:
        """Return those that load or serve."""
        return [
            r for r in self.models() if r.state != "stopping" and not r.draining and r.matches(model, engine, precision)
        ]

    def serving(self, request: m.OfModel) -> list[Replica]:
        """Return the replicas of the one model that a request means.

        Raises: NotLoaded, BadRequest if it could mean several.
        """
        asked = (request.model, request.engine, request.precision)
        default = self.defaults.of(asked)
        found = [r for r in self.matching(*(default or asked)) if r.serves]
        names = list(dict.fromkeys(r.name for r in found))
        if len(names) == 1:
            return found
        wanted = in_words(asked)
        if found:
            raise BadRequest(f"{wanted} could be any of {', '.join(names)}; name one by model, engine and precision")
        there = ", ".join(dict.fromkeys(f"{r.name} ({r.state})" for r in self.models())) or "nothing"
        if default and default != asked:
            name = "/".join(default)
            raise NotLoaded(
                f"{wanted} means {name} here, which is not ready now; try again, or name another (there is: {there})"
            )
        if asked == (None, None, None):
            raise NotLoaded(f"no model is loaded; load one first (there is: {there})")
        raise NotLoaded(f"{wanted} is not loaded; load it first (there is: {there})")

    def stop(self, replica: Replica) -> None:
        """Ask a worker to end, if it has not ended yet; `ended` returns it when it has."""
        if replica.state != "stopping" and replica.identity in self._replicas:
            replica.state = "stopping"
            replica.stop_by = time.monotonic() + STOP_S
            replica.process.stop()

    def kill(self, replica: Replica) -> None:
        """Kill a worker that does not end by itself."""
        replica.state, replica.stop_by = "stopping", time.monotonic() + STOP_S
        replica.process.kill()

    def ended(self) -> list[tuple[Replica, int]]:
        """Forget and return the workers whose processes have ended, with their exit codes; kill those that linger."""
        ended = []
        now = time.monotonic()
        for replica in list(self._replicas.values()):
            code = replica.process.exit_code()
            if code is not None:
                del self._replicas[replica.identity]
                ended.append((replica, code))
            elif replica.state == "stopping" and now > replica.stop_by:
                self.kill(replica)  # which gives it a new time to end
        return ended

    def close(self) -> None:
        """Close the launcher, after the last worker has ended."""
        self._launcher.close()


def rows_share(config: Config) -> int:
    """Return the bytes that the rows of a model may take by default where they are more than the usual number.

    On a cluster there are none, since this machine's memory says nothing of its nodes.
    """
    if config.cluster:
        return 0
    memory = machine_memory() if config.max_memory is None else min(machine_memory(), int(config.max_memory * 1e9))
    return memory // ROWS_SHARE


def exit_words(code: int) -> str:
    """Return how a process ended, for people."""
    if code in {CUT_OFF, UNREACHED}:
        return "its connection to the gateway broke" if code == CUT_OFF else "it could not reach the gateway"
    return f"signal {-code}" if code < 0 else f"exit code {code}"
