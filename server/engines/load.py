"""A model's folder -> an engine. Used in workers only; an engine's libraries are imported when it is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BadModel
from server.catalogue.architecture import Architecture
from server.catalogue.engines import COMPILED_FOLDER, TRAITS
from server.catalogue.files import hashed_files
from server.catalogue.notes import SHA256, joined, known_digests
from server.checkpoint.lora import open_weights
from server.checkpoint.tensors import Report, Tensors
from server.convert.cache import BuildCache, Built, Count
from server.engines.base import Engine


@dataclass(frozen=True)
class Made:
    """An engine, the SHA-256 of the weights (of shards: of their digests), and what it was opened from.

    `disk_bytes`: size of these files. `separate_head`: whether the head has weights of its own.
    `notices`: what a user should know of how the files were read.
    """

    engine: Engine
    digest: str
    disk_bytes: int
    separate_head: bool
    notices: tuple[str, ...] = ()


def load_engine(
    folder: Path, arch: Architecture, engine: str, precision: str, rows: int, threads: int,
    cache_dir: Path, cache_bytes: int, progress: Report, *, compiled: bool = False, base: Path | None = None,
) -> Made:  # fmt: skip
    """Make an engine of a model's folder, and of its `base` where that is an adapter.

    `compiled` is for torch. `progress(stage, done, total, unit)`.

    Raises: BadModel, LoadFailed, OSError, MemoryError, and what the runtime raises.
    """
    arch.check_engine(engine)
    files = hashed_files(folder, base)
    digests = known_digests(files, cache_dir, lambda done, total: progress("check", done, total, "bytes"))
    for file, found in digests.items():  # the hub's cache names its files so
        if SHA256.fullmatch(blob := file.resolve().name) and blob != found:
            raise BadModel(
                f"{file.name} is damaged: its SHA-256 is not the one that names {file.resolve()}; "
                "delete that, and load again"
            )
    sha = joined(list(digests.values()))
    weights = open_weights(folder, arch, base)
    loading = _Loading(
        arch,
        weights,
        engine,
        precision,
        rows,
        threads,
        compiled,
        sha,
        BuildCache(cache_dir, cache_bytes),
        progress,
    )
    opened = OPENERS[engine](loading)  # which says how large the files are that it has opened
    disk_bytes = loading.disk_bytes or sum(file.stat().st_size for file in files)
    return Made(opened, sha, disk_bytes, weights.has_head, weights.notices)


@dataclass
class _Loading:
    """Everything that an engine is made of."""

    arch: Architecture
    weights: Tensors
    engine: str
    precision: str
    rows: int
    threads: int
    compiled: bool
    sha: str
    cache: BuildCache
    progress: Report
    disk_bytes: int = 0
    """Size of the built files that were opened."""

    @contextlib.contextmanager
    def built(self, build: Callable[[Tensors, Count], Built], variant: str = "") -> Iterator[Path]:
        """Yield the folder of what `build` makes of the weights. `variant`: what that depends on beside them."""
        unit = TRAITS[self.engine].build_unit
        # The number of heads is in the config alone.
        content = hashlib.sha256(f"{self.sha} {self.arch}".encode()).hexdigest()[:32]
        place = self.cache.get(
            f"{content}-{self.engine}-{self.precision}{variant}",
            lambda count: build(self.weights, count),
            lambda done, total: self.progress("build", done, total, unit),
        )
        try:
            yield place
            self.disk_bytes = sum(f.stat().st_size for f in place.iterdir())
        finally:
            self.cache.opened(place)

    @contextlib.contextmanager
    def step(self, stage: str, unit: str) -> Iterator[None]:
        """Report a stage that has one step."""
        self.progress(stage, 0, 1, unit)
        yield
        self.progress(stage, 1, 1, unit)


def _native(loading: _Loading) -> Engine:
    from server.convert.native_layout import FILE, Layout
    from server.engines.native import NativeEngine

    def opened(done: int, total: int) -> None:
        loading.progress("open", done, total, "bytes")

    arch = loading.arch
    precision = loading.precision
    with loading.built(lambda weights, count: Layout(arch, weights, precision, count)) as place:
        return NativeEngine(arch, place / FILE, precision, loading.rows, loading.threads, progress=opened)


def _onnx(loading: _Loading) -> Engine:
    from server.convert.onnx_graph import MODEL_FILE, build
    from server.engines.onnx import OnnxEngine

    arch = loading.arch
    precision = loading.precision
    with (
        loading.built(lambda weights, count: build(arch, weights, precision, count)) as place,
        loading.step("open", "graph"),
    ):
        return OnnxEngine(arch, place / MODEL_FILE, precision, loading.rows, loading.threads)


def _optimum(loading: _Loading) -> Engine:
    from server.engines.optimum import Export, OptimumEngine, variant

    arch = loading.arch
    precision = loading.precision

    def export(weights: Tensors, count: Count) -> Built:
        return Export(arch, weights, precision, count)

    with loading.built(export, f"-{variant(precision)}") as place, loading.step("open", "graph"):
        return OptimumEngine(arch, place, loading.threads)


def _torch(loading: _Loading) -> Engine:
    # What the compiler keeps is read back as code: it lies with our own files, not where others may write.
    kept = loading.cache.folder(COMPILED_FOLDER)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))
    with loading.step("open", "model"):
        from server.engines.torch import TorchEngine

        engine = TorchEngine(
            loading.arch, loading.weights, loading.precision, loading.threads, compiled=loading.compiled
        )
    if loading.compiled:
        with loading.step("compile", "graph"):
            engine.warm_up()
            loading.cache.trim(keep=kept)
    return engine


OPENERS: dict[str, Callable[[_Loading], Engine]] = {
    "native": _native,
    "onnx": _onnx,
    "torch": _torch,
    "optimum": _optimum,
}
