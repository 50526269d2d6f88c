"""Launches, watches and ends worker processes, one per loaded model."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol

import psutil

from protocol import messages as m
from protocol.errors import BadModel, BadRequest, NoMemory, NotLoaded
from protocol.keys import CurveKeys
from protocol.link import Beat, Ready
from server.catalogue import ENGINES, OVERHEAD_BYTES, REFERENCE, Architecture, Model, rows_of
from server.config import CGROUP, Config
from server.spec import Spec

log = logging.getLogger("gpt2d.worker")

LINE_BYTES = 4096
STOP_S = 2.0
"""How long a worker may take to end by itself before it is killed."""


class Process(Protocol):
    """A running worker, as its launcher sees it."""

    def exit_code(self) -> int | None:
        """None while it runs; negative: ended by that signal."""
        ...

    def stop(self) -> None:
        """Ask it to end, without waiting."""
        ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    """Starts worker processes somewhere."""

    def start(self, spec: Spec) -> Process: ...

    def free_memory(self) -> int:
        """Bytes that new workers could take."""
        ...


class LocalProcess:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen

    def tell(self, line: bytes) -> None:
        """Write to its stdin. Raises: OSError if it has ended."""
        if self._popen.stdin:
            self._popen.stdin.write(line)
            self._popen.stdin.flush()

    def exit_code(self) -> int | None:
        return self._popen.poll()

    def stop(self) -> None:
        if self._popen.stdin:
            self._popen.stdin.close()

    def kill(self) -> None:
        self._popen.kill()


class LocalLauncher:
    """Starts workers on this machine, in sessions of their own: Ctrl-C in the daemon's terminal is the daemon's alone."""

    module = "server.process"

    def start(self, spec: Spec) -> Process:
        """Raises: OSError if no process can be made."""
        root = str(Path(__file__).resolve().parent.parent)
        # NumPy's own thread pool would only take memory: the engine has its threads. On huge pages a row's first use would
        # stall everybody for 70 ms, since the system clears all of it and not only the positions that are used.
        environment = os.environ | {"PYTHONPATH": root, "OPENBLAS_NUM_THREADS": "1", "NUMPY_MADVISE_HUGEPAGE": "0"}
        popen = subprocess.Popen(
            [sys.executable, "-P", "-m", self.module],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment,
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        name = f"{spec.model}/{spec.engine}/{spec.precision}"
        threading.Thread(target=_relay, args=(popen.stderr, name), name=f"stderr of {name}", daemon=True).start()
        process = LocalProcess(popen)
        try:
            process.tell(spec.to_line())
        except OSError:
            process.kill()
            raise
        return process

    def free_memory(self) -> int:
        return min([int(psutil.virtual_memory().available), *_cgroup_rooms()])


def _relay(stderr: IO[bytes], name: str) -> None:
    """A worker's stderr goes to the log, so that it has one format, and a reader of it that has stopped holds no worker up."""
    with stderr:
        while line := stderr.readline(LINE_BYTES):
            log.warning("%s: %s", name, line.decode(errors="replace").rstrip())


def _cgroup_rooms() -> Iterator[int]:
    """What a container's limit leaves, where there is one (cgroup v2, then v1)."""
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):  # no such file; "max"
            yield int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())


@dataclass(eq=False)
class Worker:
    """One loaded, loading or stopping model."""

    model: str
    engine: str
    precision: str
    identity: str
    process: Process
    reserved: int
    """Bytes that it may come to need."""
    state: Literal["loading", "ready", "stopping"] = "loading"
    ready: Ready | None = None
    began: float = field(default_factory=time.monotonic)
    load_ms: float = 0.0
    beat: Beat | None = None
    used: float = field(default_factory=time.monotonic)
    """When it last had something to do."""
    heard: float = field(default_factory=time.monotonic)
    waiters: list[int] = field(default_factory=list)
    """Keys of the load requests that wait for it."""
    compiled: bool = False
    task: m.Measure | None = None
    """It is there to measure this, and serves no model."""
    measured: m.Measured | None = None
    stop_by: float = 0.0

    @property
    def name(self) -> str:
        name = f"{self.model}/{self.engine}/{self.precision}"
        return f"the fidelity of {name}" if self.task else name

    def matches(self, model: str | None, engine: str | None, precision: str | None) -> bool:
        return agree((model, engine, precision), (self.model, self.engine, self.precision))

    @property
    def rss_bytes(self) -> int:
        """Resident bytes, as it last told."""
        return self.beat.rss_bytes if self.beat else self.ready.rss_bytes if self.ready else 0

    def loaded(self, ready: Ready, *, already: bool) -> m.Loaded:
        """The answer to a load."""
        return m.Loaded(
            id=None, model=self.model, engine=self.engine, precision=self.precision, digest=ready.digest, context=ready.context,
            rows=ready.rows, threads=ready.threads, rss_bytes=self.rss_bytes,
            quantised_share=ready.quantised_share, disk_bytes=ready.disk_bytes, load_ms=self.load_ms, already=already,
        )  # fmt: skip

    def health(self) -> m.WorkerHealth:
        return m.WorkerHealth(
            model=self.model, engine=self.engine, precision=self.precision, state=self.state,
            moved_ms_ago=(time.monotonic() - self.heard) * 1000,
            running=self.beat.running if self.beat else 0, waiting=self.beat.waiting if self.beat else 0,
        )  # fmt: skip

    def stats(self) -> m.WorkerStats:
        beat = self.beat
        return m.WorkerStats(
            model=self.model, engine=self.engine, precision=self.precision, rss_bytes=self.rss_bytes,
            requests=beat.requests if beat else 0, prompt_tokens=beat.prompt_tokens if beat else 0,
            new_tokens=beat.new_tokens if beat else 0, busy_ms=beat.busy_ms if beat else 0.0,
        )  # fmt: skip


def agree(wanted: tuple[str | None, ...], own: tuple[str, ...]) -> bool:
    """Whether a model, engine and precision are what was asked for; None asks for any."""
    return all(one is None or one == other for one, other in zip(wanted, own, strict=True))


class Workers:
    """The table of workers; used by the gateway's thread only."""

    def __init__(self, config: Config, keys: CurveKeys, endpoint: str, launcher: Launcher) -> None:
        self._config, self._keys, self._endpoint, self._launcher = config, keys, endpoint, launcher
        self._workers: dict[str, Worker] = {}

    def all(self) -> list[Worker]:
        return list(self._workers.values())

    def models(self) -> list[Worker]:
        """Without those that measure."""
        return [w for w in self._workers.values() if w.task is None]

    def start(self, model: Model, engine: str, precision: str, *, compiled: bool = False, task: m.Measure | None = None) -> Worker:
        """Launch a worker and reserve its memory: for a task that of one row, and of full precision beside it. Raises: NoMemory, OSError."""
        if model.problem:
            raise BadModel(f"{model.name}: {model.problem}")
        arch, config, room = model.architecture, self._config, self._room()
        rows, need = 1 if task else rows_of(engine, config.rows), OVERHEAD_BYTES
        if arch:
            rows = rows or arch.fitting_rows(engine, precision, room)
            need = arch.loading_bytes(engine, precision, rows) + (arch.memory_bytes(*REFERENCE, 1) if task else 0)
        if need > room:
            name = f"{model.name}/{engine}/{precision}"
            raise self._no_memory(f"measuring {name}" if task else name, need, room, None if task else arch, engine)
        identity = secrets.token_hex(16)
        spec = Spec(
            endpoint=self._endpoint, server_key=self._keys.public, identity=identity, model=model.name, folder=str(model.folder or ""),
            hub_cache=str(config.hub_cache), models_dir=str(config.models_dir), engine=engine, precision=precision,
            compiled=compiled, measures=task is not None, threads=config.threads, rows=rows, room=room, cache_dir=str(config.cache_dir), cache_bytes=config.cache_bytes,
        )  # fmt: skip
        worker = Worker(model.name, engine, precision, identity, self._launcher.start(spec), need, compiled=compiled, task=task)
        self._workers[identity] = worker
        return worker

    def resize(self, worker: Worker, need: int) -> None:
        """Reserve what a worker has found out that it needs; part of it may be taken already. Raises: NoMemory."""
        room = self._room()
        if need - worker.reserved > room:
            raise self._no_memory(worker.name, need, room, None, worker.engine)
        worker.reserved = need

    def _room(self) -> int:
        """Bytes that a new worker may take: what is free, less what the others have reserved and not yet taken."""
        room = self._launcher.free_memory() - sum(max(0, w.reserved - w.rss_bytes) for w in self._workers.values())
        if self._config.max_memory is not None:
            room = min(room, int(self._config.max_memory * 1e9) - sum(w.reserved for w in self._workers.values()))
        return max(0, room)

    def _no_memory(self, name: str, need: int, room: int, arch: Architecture | None, engine: str) -> NoMemory:
        """The error, with what could be done about it."""
        smaller = [f"{p} ({size / 1e6:.0f} MB)" for p in ENGINES[engine] if arch and (size := arch.memory_bytes(engine, p, 1)) < need]
        loaded = [f"{w.name} ({w.reserved / 1e6:.0f} MB)" for w in self.models() if w.reserved]
        ways = [f"unload {' or '.join(loaded)}"] if loaded else []
        ways += [f"wait until {w.name} is measured" for w in self._workers.values() if w.task]
        ways += [f"choose {' or '.join(smaller)}"] if smaller else []
        advice = ", or ".join([*ways, "choose a smaller model"])
        return NoMemory(f"{name} needs about {need / 1e6:.0f} MB; {room / 1e6:.0f} MB are free for it. You could {advice}.")

    def by_identity(self, identity: bytes) -> Worker | None:
        return self._workers.get(identity.decode("ascii", "replace"))

    def matching(self, model: str | None, engine: str | None, precision: str | None) -> list[Worker]:
        return [w for w in self.models() if w.state != "stopping" and w.matches(model, engine, precision)]

    def choose(self, request: m.OfModel) -> Worker:
        """The one ready worker that a request means. Raises: NotLoaded, BadRequest if it could mean several."""
        wanted = (request.model, request.engine, request.precision)
        found = [w for w in self.matching(*wanted) if w.state == "ready"]
        if len(found) == 1:
            return found[0]
        asked = "/".join(w or "*" for w in wanted)
        if found:
            raise BadRequest(f"{asked} could be any of {', '.join(w.name for w in found)}; name one")
        there = ", ".join(f"{w.name} ({w.state})" for w in self.models()) or "nothing"
        if wanted == (None, None, None):
            raise NotLoaded(f"no model is loaded; load one first (there is: {there})")
        raise NotLoaded(f"{asked} is not loaded; load it first (there is: {there})")

    def stop(self, worker: Worker) -> None:
        """Ask a worker to end; `ended` tells when it has."""
        if worker.state != "stopping":
            worker.state = "stopping"
            worker.stop_by = time.monotonic() + STOP_S
            worker.process.stop()

    def kill(self, worker: Worker) -> None:
        """End a worker that does not listen."""
        worker.state, worker.stop_by = "stopping", time.monotonic() + STOP_S
        worker.process.kill()

    def ended(self) -> list[tuple[Worker, int]]:
        """Forget and return the workers whose processes have ended, with their exit codes; kill those that linger."""
        ended = []
        now = time.monotonic()
        for worker in list(self._workers.values()):
            code = worker.process.exit_code()
            if code is not None:
                del self._workers[worker.identity]
                ended.append((worker, code))
            elif worker.state == "stopping" and now > worker.stop_by:
                worker.process.kill()
        return ended


def exit_words(code: int) -> str:
    """How a process ended, for people."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"
