"""A worker's process: its start, and its end.

A launcher (launch/) starts it with a Spec on its stdin. It ends when that stdin closes, so that no worker outlives its
daemon, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from protocol import messages as m
from protocol.errors import Gpt2dError, RequestError
from server.catalogue.architecture import PUBLISHED, read_architecture
from server.catalogue.catalogue import never_looked_for
from server.checkpoint.tensors import Report
from server.engines.load import load_engine
from server.launch.spec import Spec
from server.link import Ready, Sized, Started
from server.worker.connection import Connection, GatewayConnection, reporter
from server.worker.loop import Worker
from server.worker.measure import measure
from server.worker.text import Text

if TYPE_CHECKING:
    from server.checkpoint.download import Repository

END_MS = 5_000
"""Time for the gateway to read the last message, after which it ends this process."""

UNKNOWN = (
    "whether its repository has {} is not known: its folder in the hub's cache has none of them, and the hub cannot be "
    "asked now; if it has, texts may get other tokens than in training. Load it again when the hub can be reached"
)


def load(spec: Spec, connection: Connection) -> Worker:
    """Make the engine, and send the gateway `Ready`.

    Raises: BadModel, LoadFailed, and whatever a runtime raises.
    """
    progress = reporter(connection)
    progress("start", 1, 1, "process")
    repository = None if spec.folder else _repository(spec, progress)
    folder = repository.config() if repository else Path(spec.folder)
    notices = [] if repository else _complete(spec, folder, progress)
    arch = read_architecture(folder)
    arch.check_engine(spec.engine)  # before a download
    rows = spec.rows or arch.fitting_rows(spec.engine, spec.precision, spec.room)
    if repository:
        connection.send(Sized(id=None, memory_bytes=arch.loading_bytes(spec.engine, spec.precision, rows)))
        repository.tokenizer()
    text = Text(folder, arch)
    if repository:
        repository.weights()
    made = load_engine(
        folder,
        arch,
        spec.engine,
        spec.precision,
        rows,
        spec.threads,
        Path(spec.cache_dir),
        spec.cache_bytes,
        progress,
        compiled=spec.compiled,
    )
    engine = made.engine
    held = replace(arch, tied=not made.separate_head)
    connection.send(Sized(id=None, memory_bytes=held.memory_bytes(spec.engine, spec.precision, rows)))
    progress("warm up", 0, 1, "step")
    engine.prefill(0, [0], 0, [0])
    engine.decode([0], [1])
    progress("warm up", 1, 1, "step")
    worker = Worker(spec, connection, engine, text, made.digest, arch)
    ready = Ready(
        id=None,
        digest=made.digest,
        quantised_share=engine.quantised_share,
        disk_bytes=made.disk_bytes,
        context=engine.context,
        rows=engine.rows,
        threads=engine.threads,
        rss_bytes=psutil.Process().memory_info().rss,
        notices=(*notices, *arch.notices, *made.notices),
    )
    connection.send(ready)
    return worker


def _repository(spec: Spec, progress: Report) -> Repository:
    from server.checkpoint.download import Repository  # its libraries are needed for a download only

    return Repository(spec.model, Path(spec.hub_cache), Path(spec.models_dir), progress)


def _complete(spec: Spec, folder: Path, progress: Report) -> list[str]:
    """Fetch the small files that nobody looked for when the hub's cache got this folder; return what the user is told.

    Without them the tokenizer could differ from the one that the model was trained with.
    """
    unknown = [] if spec.model in PUBLISHED else never_looked_for(folder)
    if unknown:
        try:
            _repository(spec, progress).complete(unknown, folder.name)
        except (Gpt2dError, OSError):
            missing = ", ".join(name for name in unknown if not (folder / name).is_file())
            return [UNKNOWN.format(missing)]
    return []


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    for child in psutil.Process().children(recursive=True):  # a fetch or a compiler
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(0)


def main() -> None:
    spec = Spec.from_line(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    connection = GatewayConnection(spec)
    # The gateway and the clients come first. On Linux this holds for this thread and those that it makes from here on,
    # so that ZeroMQ's thread, made above, need not wait for a computing one when it has something to send.
    with contextlib.suppress(psutil.AccessDenied):  # lower already, where a cluster started it: only root may go up
        psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 5))  # Windows has classes
    try:
        live(spec, connection)
    finally:
        os._exit(1)  # not through the interpreter's shutdown, which a thread that reads stdin would hold up


def live(spec: Spec, connection: Connection) -> None:
    """Load and serve, or measure; return when that has ended and the gateway has been sent the reason."""
    ready = False
    try:
        connection.send(Started(id=None, node=spec.node))
        if spec.measures:
            connection.send(measure(spec, connection))
            connection.receive(END_MS)
        else:
            worker = load(spec, connection)
            ready = True
            worker.run()
    except BaseException as e:  # noqa: BLE001 - the gateway is sent the reason, whatever it is
        if not isinstance(e, Gpt2dError):
            traceback.print_exc()
        code = "worker_died" if ready else _load_error(e)
        connection.send(m.Failure(id=None, code=code, message=f"{spec.name}: {str(e) or type(e).__name__}"))
        connection.receive(END_MS)


def _load_error(error: BaseException) -> str:
    """Return the code for what ended a load, or a measurement."""
    if isinstance(error, RequestError):
        return error.code
    return "no_memory" if isinstance(error, MemoryError) else "load_failed"


if __name__ == "__main__":
    main()
