"""A model's folder -> an engine. Used in workers only; what an engine stands on is imported when it is asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protocol.errors import BadModel
from server.catalogue.architecture import WEIGHTS_FILE, Architecture
from server.catalogue.engines import COMPILED_FOLDER
from server.catalogue.notes import SHA256, known_digest
from server.checkpoint.tensors import BuildCache, Built, Report, Weights
from server.engines.base import Engine


@dataclass(frozen=True)
class Made:
    """An engine, the SHA-256 of the weights' file, and the bytes of the files that the engine was opened from."""

    engine: Engine
    digest: str
    disk_bytes: int


def load_engine(
    folder: Path, arch: Architecture, engine: str, precision: str, rows: int, threads: int,
    cache_dir: Path, cache_bytes: int, progress: Report, *, compiled: bool = False,
) -> Made:  # fmt: skip
    """Make an engine of a model's folder. `compiled` is for torch.

    `progress(stage, done, total, unit)`. Raises: BadModel, OSError, MemoryError, and what the runtime raises.
    """
    file = folder / WEIGHTS_FILE
    sha = known_digest(file, cache_dir, lambda done, total: progress("check", done, total, "bytes"))
    if SHA256.fullmatch(blob := file.resolve().name) and blob != sha:  # so the hub's cache names its files
        raise BadModel(
            f"{WEIGHTS_FILE} is damaged: its SHA-256 is not the one that names {file.resolve()}; delete that, and load again"
        )
    cache = BuildCache(cache_dir, cache_bytes)
    if engine == "torch":
        return Made(
            _torch(folder, arch, precision, threads, cache, progress, compiled=compiled), sha, file.stat().st_size
        )
    # The number of heads is in the config alone.
    content = hashlib.sha256(f"{sha} {arch}".encode()).hexdigest()[:32]
    variant = ""
    if engine == "optimum":
        from server.engines.optimum import variant as of_this_processor

        variant = f"-{of_this_processor(precision)}"

    def built(build: Callable[[Weights, Callable[[int, int], None]], Built]) -> Path:
        return cache.get(
            f"{content}-{engine}-{precision}{variant}",
            lambda: build(
                Weights(file, arch),
                lambda done, total: progress("build", done, total, "steps" if engine == "optimum" else "layers"),
            ),
        )

    if engine == "native":
        from server.convert.native_layout import FILE, Layout
        from server.engines.native import NativeEngine

        place = built(lambda weights, count: Layout(arch, weights, precision, count))
        made: Engine = NativeEngine(
            arch,
            place / FILE,
            precision,
            rows,
            threads,
            progress=lambda done, total: progress("open", done, total, "bytes"),
        )
    elif engine == "optimum":
        from server.engines.optimum import Export, OptimumEngine

        place = built(lambda weights, count: Export(folder, arch, weights, precision, count))
        progress("open", 0, 1, "graph")
        made = OptimumEngine(arch, place, threads)
        progress("open", 1, 1, "graph")
    else:
        from server.convert.onnx_graph import MODEL_FILE, build
        from server.engines.onnx import OnnxEngine

        place = built(lambda weights, count: build(arch, weights, precision, count))
        progress("open", 0, 1, "graph")
        made = OnnxEngine(arch, place / MODEL_FILE, precision, rows, threads)
        progress("open", 1, 1, "graph")
    size = sum(f.stat().st_size for f in place.iterdir())
    cache.opened(place)
    return Made(made, sha, size)


def _torch(
    folder: Path,
    arch: Architecture,
    precision: str,
    threads: int,
    cache: BuildCache,
    progress: Report,
    *,
    compiled: bool,
) -> Engine:
    # What the compiler keeps is read back as code: it lies with our own files, not in a folder that others may write to.
    kept = cache.folder(COMPILED_FOLDER)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(kept))
    progress("open", 0, 1, "model")
    from server.engines.torch import TorchEngine

    engine = TorchEngine(arch, folder, Weights(folder / WEIGHTS_FILE, arch), precision, threads, compiled=compiled)
    progress("open", 1, 1, "model")
    if compiled:
        progress("compile", 0, 1, "graph")
        engine.warm_up()
        cache.trim(keep=kept)
        progress("compile", 1, 1, "graph")
    return engine
