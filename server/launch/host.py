"""Runs on a node of a Ray cluster for each worker there: an actor that starts the worker program and waits for its end.

Apart from agent.py, so that a node loads no more than it needs.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray

from protocol.errors import BadModel
from protocol.programs import VERSION
from server.catalogue.engines import TRAITS
from server.catalogue.notes import digest, joined, known_digests
from server.launch.local import LocalLauncher, LocalProcess
from server.launch.spec import BASE, CUT_OFF, UNREACHED, CannotRun, Spec, files_of

RECEIVED, DRAFT = "received", ".receiving-"
STALE_S = 600.0
"""Seconds after which a receipt to which nothing was added counts as cut."""
STOP_S, PAUSE_S = 1.0, 1.0
SHUTDOWN_S = 5.0
CONTROL = "control"
"""Methods of this concurrency group run beside the others."""


class Host:
    """An actor, which Ray begins again on another node when its own is lost."""

    def __init__(self, version: str, program: list[str]) -> None:
        """Raises: RuntimeError if another version of gpt2d is installed on this node."""
        if version != VERSION:
            raise RuntimeError(f"gpt2d {VERSION} is installed on {_node_name()}, and the server is {version}")
        self._program = program
        self._cache, self._limit = Path(), 0
        self._draft: Path | None = None
        self._process: LocalProcess | None = None
        self._routing_id = ""
        self._stops = False

    def run(self, fields: dict[str, Any], files: dict[str, str]) -> int | None:
        """Start a worker and return its exit code; None if the model's files are not on this node, and are to be sent.

        `files` are their names (spec.files_of) and SHA-256. They are here if the same path has them (a shared folder,
        or the same machine), or if they were sent before. Raises: CannotRun, OSError.
        """
        spec = Spec(**fields)
        if problem := TRAITS[spec.engine].problem():
            raise CannotRun(f"the engine {spec.engine} cannot be used on node {_node_name()}: {problem}")
        self._cache, self._limit = Path(spec.cache_dir), spec.cache_bytes
        folder = self._folder(spec, files)
        if files and folder is None:
            return None
        if folder and folder != Path(spec.folder):
            spec = replace(spec, folder=str(folder), base_folder=str(folder / BASE) if spec.base_folder else "")
        node, reached = _node_name(), False
        while not self._stops:
            # Each process has its own routing id, by which the gateway knows it from the one before it.
            self._routing_id = f"{spec.identity}.{secrets.token_hex(4)}"
            own = replace(spec, identity=self._routing_id, node=node)
            self._process = LocalLauncher(self._program).start(own, 0)
            if self._stops:  # `stop` came while there was no process yet
                self.stop()
            code = self._process.wait() or 0
            if code:
                print(f"the worker of {spec.name} ended with code {code}", file=sys.stderr)
            if not self._routing_id:  # `cut` ended it
                code = CUT_OFF
            if code == -signal.SIGTERM and not self._stops:
                time.sleep(SHUTDOWN_S)  # the node shuts down, and this process with it: Ray begins both elsewhere
            reached = reached or code == CUT_OFF
            if not reached or code not in {CUT_OFF, UNREACHED}:
                return code
            time.sleep(PAUSE_S)
        return 0

    @ray.method(concurrency_group=CONTROL, max_task_retries=0)  # type: ignore[untyped-decorator]  # Ray is Any
    def stop(self) -> None:
        """End the worker; called beside `run`, which then returns."""
        self._stops = True
        if process := self._process:
            process.stop()
            if process.wait(STOP_S) is None:
                process.kill()

    @ray.method(concurrency_group=CONTROL, max_task_retries=0)  # type: ignore[untyped-decorator]  # Ray is Any
    def cut(self, routing_id: str) -> None:
        """End a process that the gateway has lost, which may not know; `run` begins another."""
        if self._process and routing_id == self._routing_id:
            self._routing_id = ""
            self._process.kill()

    def take(self, name: str, offset: int, part: bytes, total: int) -> None:
        """Keep a part of a file; all files have `total` bytes together. Raises: OSError if it cannot be kept."""
        if self._draft is None:
            received = self._cache / RECEIVED
            received.mkdir(parents=True, exist_ok=True)
            _make_room(received, total, self._limit)
            self._draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=received))
        try:
            (self._draft / name).parent.mkdir(exist_ok=True)
            with (self._draft / name).open("r+b" if (self._draft / name).exists() else "wb") as file:
                file.seek(offset)
                file.write(part)
        except OSError:
            draft, self._draft = self._draft, None
            shutil.rmtree(draft, ignore_errors=True)
            raise

    def _folder(self, spec: Spec, files: dict[str, str]) -> Path | None:
        """Return where this node has those files: the folder that the orders name, or one with all that was sent."""
        cache = Path(spec.cache_dir)
        with contextlib.suppress(OSError, BadModel):
            given = files_of(asdict(spec))
            digests = known_digests(list(given.values()), cache, lambda *_: None)
            if files and {name: digests[file] for name, file in given.items()} == files:
                return Path(spec.folder)
        place = cache / RECEIVED / joined([sha for _, sha in sorted(files.items())])
        if self._draft:
            draft, self._draft = self._draft, None
            with contextlib.suppress(OSError):  # another worker of this node may have put them there
                if all(digest(draft / name, lambda *_: None) == sha for name, sha in files.items()):
                    draft.rename(place)
            shutil.rmtree(draft, ignore_errors=True)
        if not place.is_dir():
            return None
        place.touch()
        return place


def _make_room(received: Path, size: int, limit: int) -> None:
    """Delete what was received longest ago, and what is left of a receipt that was cut, until `size` more bytes fit."""
    for draft in received.glob(f"{DRAFT}*"):
        if max((f.stat().st_mtime for f in (draft, *draft.rglob("*"))), default=0.0) < time.time() - STALE_S:
            shutil.rmtree(draft, ignore_errors=True)
    whole = sorted((p for p in received.iterdir() if not p.name.startswith(DRAFT)), key=lambda p: p.stat().st_mtime)
    sizes = {p: sum(f.stat().st_size for f in p.rglob("*")) for p in whole}
    for entry in whole:
        if sum(sizes.values()) + size <= limit:
            return
        shutil.rmtree(entry, ignore_errors=True)  # what has it open keeps it
        del sizes[entry]


def _node_name() -> str:
    mine = ray.get_runtime_context().get_node_id()
    return str(next((node["NodeName"] for node in ray.nodes() if node["NodeID"] == mine), mine))
