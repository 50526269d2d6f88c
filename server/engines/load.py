"""A model's folder -> an engine. Used in workers only; an engine's libraries are imported when it is asked for."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BadModel, LoadFailed
from server.catalogue.architecture import CALIBRATION_CACHE, Architecture
from server.catalogue.engines import (
    CALIBRATED,
    CALIBRATES,
    COMPILED_FOLDER,
    OWN_TEXTS,
    SOURCE_FILE,
    TRAITS,
    choose_cache,
)
from server.catalogue.files import EMBEDDED_FOLDER, hashed_files
from server.catalogue.notes import SHA256, joined, known_digests
from server.checkpoint.lora import open_weights
from server.checkpoint.tensors import Report, Tensors
from server.convert.cache import BuildCache, Built, Count
from server.engines.base import Engine

DAMAGED = "its calibrated int4 is damaged, so each weight is rounded by itself; calibrate it again"
OUTDATED = "its calibrated int4 has an older format, so each weight is rounded by itself; calibrate it again"
NO_BEGINNING = (
    "it has neither a bos_token_id nor an eos_token_id to begin texts of its own with: give it a text to be calibrated "
    "with"
)
BUILD, BUILD_AGAIN = "build", "build again"
"""Stages of a load; the second where what was built before has an older format."""


@dataclass(frozen=True)
class Made:
    """An engine, the SHA-256 of the weights (of shards: of their digests), and what it was opened from.

    `disk_bytes`: size of these files. `separate_head`: whether the head has weights of its own.
    `notices`: what a user should know of how the files were read. `calibrated`: whether its weights were rounded by
    calibration. `instruction_set`: the engine native's.
    """

    engine: Engine
    digest: str
    disk_bytes: int
    separate_head: bool
    notices: tuple[str, ...] = ()
    calibrated: bool = False
    instruction_set: str = ""


def load_engine(
    folder: Path, arch: Architecture, engine: str, precision: str, rows: int, threads: int,
    cache_dir: Path, cache_bytes: int, progress: Report, *, compiled: bool = False, cache: str | None = None,
    base: Path | None = None, reserve: Callable[[int], None] = lambda _: None,
) -> Made:  # fmt: skip
    """Make an engine of a model's folder, and of its `base` where that is an adapter.

    `compiled` is for torch, `cache` what its KV cache is made of. `progress(stage, done, total, unit)`.
    `reserve(bytes)` is called where it takes more memory than `loading_bytes`, before it does.

    Raises: BadModel, LoadFailed, OSError, MemoryError, and what the runtime raises.
    """
    loading = _prepare(
        folder,
        arch,
        engine,
        precision,
        rows,
        threads,
        cache_dir,
        cache_bytes,
        progress,
        compiled=compiled,
        cache=cache,
        base=base,
        reserve=reserve,
    )
    weights = loading.weights
    opened = OPENERS[engine](loading)  # which says how large the files are that it has opened
    disk_bytes = loading.disk_bytes or sum(file.stat().st_size for file in hashed_files(folder, base))
    notices = (*weights.notices, *loading.notices)
    instruction_set = getattr(opened, "instruction_set", "")
    return Made(opened, loading.sha, disk_bytes, weights.has_head, notices, loading.calibrated, instruction_set)


def calibrate_model(
    folder: Path, arch: Architecture, threads: int, cache_dir: Path, cache_bytes: int, progress: Report,
    *, ids: Sequence[int] | None = None, base: Path | None = None,
) -> Path:  # fmt: skip
    """Calibrate the native engine's int4 of a model, and keep it for all loads that follow; return its folder.

    `ids` are a text to do it with; None: texts that the model writes. What has been calibrated so already stays.

    Raises: BadModel, LoadFailed where it cannot be kept, OSError, MemoryError, FloatingPointError.
    """
    if ids is None and arch.start is None:
        raise BadModel(NO_BEGINNING)
    loading = _prepare(folder, arch, *CALIBRATES, 1, threads, cache_dir, cache_bytes, progress, base=base)
    source = OWN_TEXTS if ids is None else hashlib.sha256(str(list(ids)).encode()).hexdigest()
    name = loading.name("int4", CALIBRATED)
    with contextlib.ExitStack() as calibration:
        place = loading.cache.get(
            name,
            lambda count: calibration.enter_context(_calibrated(loading, ids, source, count)),
            lambda done, total: progress("calibrate", done, total, "layers"),
            lambda kept: _source(kept) == source,
        )
    if place != loading.cache.folder(name):
        loading.cache.opened(place)
        raise LoadFailed(f"what was calibrated cannot be kept in {cache_dir}; make room there, or choose --cache-dir")
    return place


def _source(folder: Path) -> str:
    """Return what a kept int4 was calibrated with; empty where it does not say so."""
    with contextlib.suppress(OSError):
        return (folder / SOURCE_FILE).read_text(encoding="utf-8")
    return ""


def _prepare(
    folder: Path, arch: Architecture, engine: str, precision: str, rows: int, threads: int,
    cache_dir: Path, cache_bytes: int, progress: Report, *, compiled: bool = False, cache: str | None = None,
    base: Path | None = None, reserve: Callable[[int], None] = lambda _: None,
) -> _Loading:  # fmt: skip
    """Check a model's files, and return what an engine is made of. Raises: BadModel, OSError."""
    arch.check_engine(engine)
    files = hashed_files(folder, base)
    digests = known_digests(files, cache_dir, lambda done, total: progress("check", done, total, "bytes"))
    for file, found in digests.items():  # the hub's cache names its files so
        if SHA256.fullmatch(blob := file.resolve().name) and blob != found:
            raise BadModel(
                f"{file.name} is damaged: its SHA-256 is not the one that names {file.resolve()}; "
                "delete that, and load again"
            )
    return _Loading(
        arch,
        open_weights(folder, arch, base),
        engine,
        precision,
        rows,
        threads,
        compiled,
        choose_cache(engine, precision, cache),
        joined(list(digests.values())),
        BuildCache(cache_dir, cache_bytes),
        progress,
        reserve,
        embedded=folder == EMBEDDED_FOLDER,
    )


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
    kv_cache: str
    sha: str
    cache: BuildCache
    progress: Report
    reserve: Callable[[int], None]
    embedded: bool = False
    """Whether it is the embedded model."""
    disk_bytes: int = 0
    """Size of the built files that were opened."""
    calibrated: bool = False
    notices: tuple[str, ...] = ()

    def name(self, precision: str, variant: str = "") -> str:
        """Return what a built model is called in the cache. The number of heads is in the config alone."""
        content = hashlib.sha256(f"{self.sha} {self.arch}".encode()).hexdigest()[:32]
        return f"{content}-{self.engine}-{precision}{variant}"

    @contextlib.contextmanager
    def built(
        self, build: Callable[[Tensors, Count], Built], variant: str = "", *, precision: str | None = None
    ) -> Iterator[Path]:
        """Yield the folder of what `build` makes of the weights. `variant`: what that depends on beside them.

        `precision`: another one than what is loaded.
        """
        unit = TRAITS[self.engine].build_unit
        name = self.name(precision or self.precision, variant)
        stage = BUILD
        if self.cache.outdated(name):
            stage = BUILD_AGAIN
            print(f"{name} was built in an older format, and is built again", file=sys.stderr, flush=True)
        place = self.cache.get(
            name,
            lambda count: build(self.weights, count),
            lambda done, total: self.progress(stage, done, total, unit),
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
    if precision == "int4":
        name = loading.name(precision, CALIBRATED)
        there, intact = loading.cache.find(name)
        loading.calibrated = intact or loading.embedded
        if not loading.calibrated and (there or loading.cache.outdated(name)):
            loading.notices += (DAMAGED if there else OUTDATED,)
    with contextlib.ExitStack() as calibration:

        def build(weights: Tensors, count: Count) -> Built:
            if loading.calibrated:
                loading.reserve(arch.calibration_bytes())
                return calibration.enter_context(_calibrated(loading, None, OWN_TEXTS, count))
            return Layout(arch, weights, precision, count)

        with loading.built(build, CALIBRATED if loading.calibrated else "") as place:
            calibration.close()  # before the engine takes memory, too
            return NativeEngine(
                arch,
                place / FILE,
                precision,
                loading.rows,
                loading.threads,
                cache=loading.kv_cache,
                progress=opened,
            )


@contextlib.contextmanager
def _calibrated(loading: _Loading, ids: Sequence[int] | None, source: str, count: Count) -> Iterator[Built]:
    """Yield what makes int4 of a model with its int8, which stays open meanwhile.

    `ids` are a text that it is calibrated for; None: it writes texts itself. `source` names which.
    """
    from server.convert.native_layout import FILE, Layout
    from server.engines.calibration import Calibrated, in_windows, write_texts
    from server.engines.native import NativeEngine

    arch = loading.arch
    rows = arch.calibration_rows()
    with loading.built(lambda weights, inner: Layout(arch, weights, "int8", inner), precision="int8") as place:
        engine = NativeEngine(arch, place / FILE, "int8", rows, loading.threads, cache=CALIBRATION_CACHE)
    with contextlib.closing(engine):
        if ids is None:
            texts = write_texts(engine, arch, lambda done, total: loading.progress("write", done, total, "tokens"))
        else:
            texts = in_windows(ids, arch.context)
        yield Calibrated(arch, loading.weights, engine, texts, source, count)


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
