"""A worker's process: its start, and its end.

Started by a launcher (launch/) with a Spec on its stdin. It ends when that stdin closes, so that no worker
outlives its daemon, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from protocol import messages as m
from protocol.errors import Gpt2dError, LoadFailed, RequestError
from server.catalogue.architecture import read_architecture
from server.catalogue.engines import REFERENCE
from server.catalogue.records import Records
from server.checkpoint.tensors import Report
from server.engines.load import Made, load_engine
from server.launch.spec import Spec
from server.link import Beat, Ready, Sized, Started
from server.worker.fidelity import CHUNK, check, compare
from server.worker.loop import Link, Worker
from server.worker.text import Text
from server.works import held_out

if TYPE_CHECKING:
    from server.checkpoint.download import Repository

PROGRESS_S = 0.05
TASK_MS, END_MS = 10_000, 5_000


def load(spec: Spec, link: Link) -> Worker:
    """Make the engine and say so. Raises: BadModel, and whatever a runtime raises."""
    progress = _reporter(link)
    progress("start", 1, 1, "process")
    repository = None if spec.folder else _repository(spec, progress)
    folder = repository.config() if repository else Path(spec.folder)
    arch = read_architecture(folder)
    rows = spec.rows or arch.fitting_rows(spec.engine, spec.precision, spec.room)
    if repository:
        link.send(Sized(id=None, memory_bytes=arch.loading_bytes(spec.engine, spec.precision, rows)))
        if repository.rest() != folder:
            raise LoadFailed(f"{spec.model} changed on the hub while it was downloaded; load it again")
    text = Text(folder, arch.vocabulary, arch.end_of_text)
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
    link.send(Sized(id=None, memory_bytes=arch.memory_bytes(spec.engine, spec.precision, rows)))
    progress("warm up", 0, 1, "step")
    engine.prefill(0, [arch.end_of_text], 0, [0])
    engine.decode([0], [1])
    progress("warm up", 1, 1, "step")
    worker = Worker(spec, link, engine, text, made.digest, arch)
    link.send(
        Ready(
            id=None, digest=made.digest, quantised_share=engine.quantised_share, disk_bytes=made.disk_bytes, context=engine.context, rows=engine.rows, threads=engine.threads,
            rss_bytes=psutil.Process().memory_info().rss,
        )
    )  # fmt: skip
    return worker


def measure(spec: Spec, link: Link) -> m.Measured:
    """Do the one Measure that the gateway has for this process, and keep the result. Raises: as `load`; BadRequest, LoadFailed."""
    task = next((message for message in link.receive(TASK_MS) if isinstance(message, m.Measure)), None)
    if task is None:
        raise LoadFailed("the gateway told this process nothing to measure")
    progress, folder, cache_dir = _reporter(link), Path(spec.folder), Path(spec.cache_dir)
    arch = read_architecture(folder)
    progress("text", 0, 1, "text")
    ids = Text(folder, arch.vocabulary, arch.end_of_text).encode(task.text or held_out(cache_dir))
    check(ids, arch.context)
    records = Records(cache_dir, folder, arch)
    progress("text", 1, 1, "text")

    def make(engine: str, precision: str) -> Made:
        made = load_engine(folder, arch, engine, precision, 1, spec.threads, cache_dir, spec.cache_bytes, progress)
        link.send(Beat(id=None, rss_bytes=psutil.Process().memory_info().rss))  # of its reservation that much is taken
        return made

    made = make(spec.engine, spec.precision)
    made.engine.prefill(0, ids[: min(CHUNK, arch.context)], 0, [0])
    memory = psutil.Process().memory_info().rss
    compared = compare(
        made.engine, make(*REFERENCE).engine, ids, lambda done, total: progress("compare", done, total, "tokens")
    )
    fidelity = m.Fidelity(
        quantised_share=made.engine.quantised_share, disk_bytes=made.disk_bytes, memory_bytes=memory, threads=made.engine.threads,
        perplexity=compared.perplexity, perplexity_change_pct=100 * (compared.perplexity / compared.reference_perplexity - 1),
        top1_agreement=compared.top1_agreement, kl_mean=compared.kl_mean, kl_p99=compared.kl_p99,
        greedy_tokens=compared.greedy_tokens, greedy_limit=compared.greedy_limit, tok_s=compared.tok_s, tokens=compared.tokens,
        held_out=task.text is None,
    )  # fmt: skip
    try:
        records.add(spec.engine, spec.precision, fidelity)
    except OSError as e:
        print(f"what was measured cannot be kept in {cache_dir}: {e}", file=sys.stderr)
    return m.Measured(id=None, model=spec.model, engine=spec.engine, precision=spec.precision, fidelity=fidelity)


def _reporter(link: Link) -> Report:
    """Send progress, a few times a second."""
    sent_at = 0.0

    def progress(stage: str, done: int, total: int, unit: str) -> None:
        nonlocal sent_at
        if done >= total or time.monotonic() > sent_at + PROGRESS_S:
            sent_at = time.monotonic()
            link.send(m.Progress(id=None, stage=stage, done=done, total=total, unit=unit))

    return progress


def _repository(spec: Spec, progress: Report) -> Repository:
    from server.checkpoint.download import Repository  # its libraries are needed for a download only

    return Repository(spec.model, Path(spec.hub_cache), Path(spec.models_dir), progress)


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
    link = Link(spec)
    # The gateway and the clients come first. On Linux this holds for this thread and those it makes from here on, so that
    # ZeroMQ's thread, made above, need not wait for a computing one when it has something to send.
    with contextlib.suppress(psutil.AccessDenied):  # lower already, where a cluster started it: only root may go up
        psutil.Process().nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", 5))  # Windows has classes
    try:
        link.send(Started(id=None, node=spec.node))
        if spec.measures:
            link.send(measure(spec, link))
            link.receive(END_MS)  # the gateway ends this process when it has read that
        else:
            load(spec, link).run()
    except BaseException as e:  # noqa: BLE001 - told to the gateway, whatever it is
        if not isinstance(e, Gpt2dError):
            traceback.print_exc()
        code = e.code if isinstance(e, RequestError) else "no_memory" if isinstance(e, MemoryError) else "load_failed"
        link.send(m.Failure(id=None, code=code, message=f"{spec.name}: {e or type(e).__name__}"))
        link.receive(END_MS)
    finally:
        os._exit(1)  # not through the interpreter's shutdown, which a thread that reads stdin would hold up


if __name__ == "__main__":
    main()
