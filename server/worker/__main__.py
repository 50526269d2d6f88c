"""A worker's process: its start, and its end.

A launcher (launch/) starts it with a Spec on its stdin. It ends when that stdin closes, so that no worker outlives its
daemon, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil

from protocol import messages as m
from protocol.errors import Gpt2dError, RequestError, printable
from server.catalogue.adapters import architecture_of
from server.catalogue.engines import force_instruction_set
from server.catalogue.files import without_folder
from server.checkpoint.tokenizer import read_tokenizer
from server.child import end_with_stdin
from server.engines.load import load_engine
from server.launch.spec import Spec
from server.link import Ready, Sized, Started
from server.worker.calibrate import calibrate
from server.worker.connection import Connection, GatewayConnection, reporter
from server.worker.loop import Worker
from server.worker.measure import measure
from server.worker.source import find
from server.worker.text import Text

TASKS: dict[str, Callable[[Spec, Connection], m.Measured | m.Calibrated]] = {"measure": measure, "calibrate": calibrate}
SWITCH_S = 0.0005
"""Time for which the thread that reads requests keeps the loop from going on after each call of the engine."""
MORE_ROOM = "unload another model, {}or start the server with fewer --rows or a higher `ulimit -v`"
END_MS = 5_000
"""Time for the gateway to read the last message, after which it ends this process."""


def load(spec: Spec, connection: Connection) -> Worker:
    """Make the engine, and send the gateway `Ready`.

    Raises: BadModel, LoadFailed, and whatever a runtime raises.
    """
    if spec.instruction_set and spec.engine == "native":
        force_instruction_set(spec.instruction_set)  # a node's environment says nothing of it
    progress = reporter(connection)
    progress("start", 1, 1, "process")
    source = find(spec, progress)
    arch = architecture_of(source.folder, source.base)
    arch.check_engine(spec.engine)  # before a download
    rows = spec.rows or arch.fitting_rows(spec.engine, spec.precision, spec.room, spec.share, spec.cache)
    loading_bytes = arch.loading_bytes(spec.engine, spec.precision, rows, spec.cache)
    if source.fetched:
        connection.send(Sized(id=None, memory_bytes=loading_bytes))
    tokenizer = read_tokenizer(source.tokenizer())
    text = Text(tokenizer, arch)
    source.weights(arch)
    made = load_engine(
        source.folder,
        arch,
        spec.engine,
        spec.precision,
        rows,
        spec.threads,
        Path(spec.cache_dir),
        spec.cache_bytes,
        progress,
        compiled=spec.compiled,
        cache=spec.cache,
        base=source.base,
        reserve=lambda needed: connection.send(Sized(id=None, memory_bytes=max(needed, loading_bytes))),
    )
    engine = made.engine
    held = replace(arch, tied=not made.separate_head)
    memory_bytes = held.memory_bytes(spec.engine, spec.precision, rows, spec.cache)
    connection.send(Sized(id=None, memory_bytes=memory_bytes))
    progress("warm up", 0, 1, "step")
    engine.prefill(0, [0], 0, [0])
    engine.decode([0], [1])
    progress("warm up", 1, 1, "step")
    worker = Worker(
        spec,
        connection,
        engine,
        text,
        made.digest,
        arch,
        calibrated=made.calibrated,
        instruction_set=made.instruction_set,
    )
    ready = Ready(
        id=None,
        digest=made.digest,
        quantised_share=engine.quantised_share,
        disk_bytes=made.disk_bytes,
        context=engine.context,
        rows=engine.rows,
        threads=engine.threads,
        rss_bytes=psutil.Process().memory_info().rss,
        notices=tuple(map(printable, (*source.notices, *arch.notices, *made.notices))),
        byte_level=tokenizer.byte_level,
        calibrated=made.calibrated,
        instruction_set=made.instruction_set,
    )
    connection.send(ready)
    return worker


def main() -> None:
    sys.setswitchinterval(SWITCH_S)
    spec = Spec.from_line(sys.stdin.buffer.readline())
    end_with_stdin()
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
    """Load and serve, or do a task; return when that has ended and the gateway has been sent the reason."""
    ready = False
    try:
        connection.send(Started(id=None, node=spec.node))
        if task := TASKS.get(spec.task):
            connection.send(task(spec, connection))
            connection.receive(END_MS)
        else:
            worker = load(spec, connection)
            ready = True
            worker.run()
    except BaseException as e:  # noqa: BLE001 - the gateway is sent the reason, whatever it is
        if not isinstance(e, Gpt2dError):
            traceback.print_exc()
        code = "worker_died" if ready else _load_error(e)
        reason = without_folder(e) or type(e).__name__
        if isinstance(e, MemoryError) and not (ready or spec.task):  # though enough seemed to be free
            smaller = "" if spec.precision in {"int8", "int4"} else "choose int8 or int4, "
            reason = f"the system refused it memory ({reason}); {MORE_ROOM.format(smaller)}"
        connection.send(m.Failure(id=None, code=code, message=printable(f"{spec.name}: {reason}")))
        connection.receive(END_MS)


def _load_error(error: BaseException) -> str:
    """Return the code for what ended a load, or a task."""
    if isinstance(error, RequestError):
        return error.code
    return "no_memory" if isinstance(error, MemoryError) else "load_failed"


if __name__ == "__main__":
    main()
