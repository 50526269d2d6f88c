"""Answer to `models`, made outside the gateway's thread: it reads files of every model, which takes long with many.

A look at the disk runs in a thread, only when somebody asks, and one at a time. What it found answers all who ask
within MAX_AGE_S of its beginning. A thread that waits for the disk holds nobody else up, and ends with the daemon.
Files that take a model library to understand are looked into by another process (inspector.py), for later answers.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from protocol import codec, messages as m
from protocol.errors import BadModel
from server.catalogue import findings
from server.catalogue.catalogue import DEMO, Catalogue, Model
from server.catalogue.findings import Finding
from server.config import Config
from server.gateway import status
from server.gateway.inspector import Inspector, Unknown

MAX_AGE_S = 1.0
"""Greatest age of an answer."""


@dataclass(frozen=True)
class Look:
    """Result of a look at the disk, and when it began (monotonic). Models are packed already: there may be many."""

    began: float
    models: dict[str, m.ModelInfo]
    packed: dict[str, msgspec.Raw]
    error: Exception | None = None


@dataclass(frozen=True)
class _Waiter:
    key: int
    oldest: float
    """Earliest beginning of a look that may answer it (monotonic)."""


class Listing:
    """Requests for the models, and what was found. Used by the gateway's thread only; no method waits for the disk."""

    def __init__(self, catalogue: Catalogue, config: Config) -> None:
        self._catalogue, self._config = catalogue, config
        near, far = socket.socketpair()
        near.setblocking(False)
        self.woken = near
        """Socket that is readable when a look has ended: the byte in it says that `_landed` is there."""
        self._far = far
        self._waiters: list[_Waiter] = []
        self._latest: Look | None = None
        self._landed: Look | None = None
        """Result that the looking thread has left for this one."""
        self._changed = 0.0
        self._looking = False
        self._inspector = Inspector(config.cache_dir, self.changed)

    def ask(self, key: int) -> None:
        """Note that a request wants to know; `take` will have its answer."""
        self._waiters.append(_Waiter(key, max(time.monotonic() - MAX_AGE_S, self._changed)))

    def changed(self) -> None:
        """Note that the disk has just changed: requests from now on are answered by a later look. For any thread."""
        self._changed = time.monotonic()

    def take(self) -> list[tuple[int, Look]]:
        """Return the requests that can be answered, each with what was found. Begins a look where one is needed."""
        if self._looking:
            with contextlib.suppress(BlockingIOError):
                self.woken.recv(1)
                self._latest, self._looking = self._landed, False
        if not self._waiters:
            return []
        latest = self._latest
        served = [(w.key, latest) for w in self._waiters if latest and latest.began >= w.oldest]
        self._waiters = [w for w in self._waiters if not latest or latest.began < w.oldest]
        if self._waiters and not self._looking:
            self._looking = True
            began = time.monotonic()
            try:
                threading.Thread(target=self._look, args=(began,), name="models", daemon=True).start()
            except RuntimeError as e:  # the system gives no more threads
                self._land(Look(began, {}, {}, e))
        return served

    def _look(self, began: float) -> None:
        """Look at all models. Runs in the looking thread."""
        try:
            models = self._describe()
            found = Look(began, models, {name: codec.packed(model) for name, model in models.items()})
        except Exception as e:  # noqa: BLE001 - whatever it is, those who wait get an answer
            found = Look(began, {}, {}, e)
        self._land(found)

    def _land(self, found: Look) -> None:
        """Leave the result of a look, and wake the gateway's thread."""
        self._landed = found
        with contextlib.suppress(OSError):  # the daemon has ended
            self._far.send(b"!")

    def _describe(self) -> dict[str, m.ModelInfo]:
        """Describe all models; those in whose files nobody has looked yet are inspected afterwards."""
        models: dict[str, m.ModelInfo] = {}
        unknown: dict[Path, Unknown] = {}
        for model in self._catalogue.models():
            finding = self._finding(model, unknown)
            models[model.name] = status.describe(model, finding, self._config)
        self._inspector.inspect(unknown)
        return models

    def _finding(self, model: Model, unknown: dict[Path, Unknown]) -> Finding:
        """Return what is known of a model's files; where nothing is, note their state in `unknown`."""
        if model.folder is None or not model.on_disk or model.problem or model.name == DEMO:
            return Finding()
        try:
            state = findings.state(model.folder, model.base_folder)
        except (OSError, BadModel):  # it has just been taken away
            return Finding()
        finding = findings.found(model.folder, self._config.cache_dir, state)
        if finding is None:
            unknown[model.folder] = Unknown(state, model.base_folder)
        return finding or Finding()

    def close(self) -> None:
        self._inspector.close()
        self.woken.close()
        self._far.close()
