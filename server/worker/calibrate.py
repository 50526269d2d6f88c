"""Task of a process that calibrates a model's int4, and keeps it for the loads that follow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from protocol import messages as m
from protocol.errors import BadRequest
from server.catalogue.adapters import architecture_of, tokenizer_folder
from server.catalogue.architecture import Architecture
from server.catalogue.engines import CALIBRATES
from server.catalogue.notes import digest
from server.catalogue.records import Records
from server.checkpoint.tensors import Report
from server.checkpoint.tokenizer import read_tokenizer
from server.engines.load import calibrate_model
from server.launch.spec import Spec
from server.link import Beat
from server.worker.connection import Connection, reporter, task_of
from server.worker.text import Text

BEAT_S = 1.0
MIN_TOKENS = 1024
"""Smallest number of tokens of a text that says which errors matter."""


def enough(ids: Sequence[int]) -> None:
    """Check that a text is long enough. Raises: BadRequest."""
    if len(ids) < MIN_TOKENS:
        raise BadRequest(f"calibrate: the text must have at least {MIN_TOKENS:,} tokens, got {len(ids):,}")


def keep(
    folder: Path, arch: Architecture, threads: int, cache_dir: Path, cache_bytes: int, progress: Report,
    *, ids: Sequence[int] | None, base: Path | None,
) -> Path:  # fmt: skip
    """Calibrate as `calibrate_model` does, and forget what was measured of that int4 before."""
    place = calibrate_model(folder, arch, threads, cache_dir, cache_bytes, progress, ids=ids, base=base)
    Records(cache_dir, folder, arch, base).drop(*CALIBRATES)
    return place


def calibrate(spec: Spec, connection: Connection) -> m.Calibrated:
    """Carry out the one Calibrate that the gateway has for this process.

    Raises: BadRequest, BadModel, LoadFailed, and whatever a runtime raises.
    """
    task = task_of(connection, m.Calibrate)
    began = time.perf_counter()
    folder = Path(spec.folder)
    base = Path(spec.base_folder) if spec.base_folder else None
    arch = architecture_of(folder, base)
    ids = None
    if task.text is not None:
        ids = Text(read_tokenizer(tokenizer_folder(folder, base)), arch).encode(task.text)
        enough(ids)
    report = reporter(connection)
    beat_at = 0.0

    def progress(stage: str, done: int, total: int, unit: str) -> None:
        nonlocal beat_at
        report(stage, done, total, unit)
        if time.monotonic() > beat_at + BEAT_S:  # the part of its reservation that is used
            beat_at = time.monotonic()
            connection.send(Beat(id=None, rss_bytes=psutil.Process().memory_info().rss))

    place = keep(folder, arch, spec.threads, Path(spec.cache_dir), spec.cache_bytes, progress, ids=ids, base=base)
    file = max(place.iterdir(), key=lambda file: file.stat().st_size)
    return m.Calibrated(
        id=None,
        model=spec.model,
        engine=spec.engine,
        precision=spec.precision,
        digest=digest(file, lambda *_: None),
        disk_bytes=file.stat().st_size,
        elapsed_ms=(time.perf_counter() - began) * 1000,
    )
