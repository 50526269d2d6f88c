"""A model's files -> an engine: tensors from safetensors, and the disk cache of built graphs. Used in the worker only."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from protocol.errors import BadModel
from server.catalogue import Architecture
from server.engines.base import Engine
from server.engines.onnx import OnnxEngine
from server.graph import MODEL_FILE, Graph, build

PREFIX = "transformer."
CHUNK = 8 << 20


class Weights(Mapping[str, NDArray[np.float32]]):
    """GPT-2's tensors by name, without the `transformer.` prefix; each is read and made float32 when asked for.

    Raises: BadModel, at once, if a tensor is missing or has another shape than the architecture says.
    """

    def __init__(self, file: Path, arch: Architecture) -> None:
        try:
            self._tensors = safe_open(file, framework="numpy")
            stored = {name.removeprefix(PREFIX): name for name in self._tensors.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as e:
            raise BadModel(f"{file.name} cannot be read: {e}") from None
        self._shapes = expected_shapes(arch)
        # Checkpoints repeat a tied head, and old ones hold attention masks: neither is a parameter.
        if "lm_head.weight" in stored and not self._tied(stored):
            self._shapes["lm_head.weight"] = (arch.vocabulary, arch.width)
        for name, shape in self._shapes.items():
            if name not in stored:
                raise BadModel(f"{file.name} has no tensor {name}")
            found = tuple(self._tensors.get_slice(stored[name]).get_shape())
            if found != shape:
                raise BadModel(f"{file.name}: {name} has shape {list(found)}, config.json says {list(shape)}")
        self._stored = stored

    def _tied(self, stored: dict[str, str]) -> bool:
        head, table = (self._tensors.get_tensor(stored.get(n, n)) for n in ("lm_head.weight", "wte.weight"))
        return bool(np.array_equal(head, table))

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._shapes:
            raise KeyError(name)
        return np.asarray(self._tensors.get_tensor(self._stored[name])).astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def expected_shapes(arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Return {tensor name: shape} of a GPT-2; the blocks' matrices are [inputs, outputs] (transformers' Conv1D)."""
    d, inner = arch.width, arch.inner
    shapes: dict[str, tuple[int, ...]] = {"wte.weight": (arch.vocabulary, d), "wpe.weight": (arch.context, d)}
    for i in range(arch.layers):
        h = f"h.{i}"
        for name, shape in (("attn.c_attn", (d, 3 * d)), ("attn.c_proj", (d, d)), ("mlp.c_fc", (d, inner)), ("mlp.c_proj", (inner, d))):
            shapes[f"{h}.{name}.weight"] = shape
            shapes[f"{h}.{name}.bias"] = shape[1:]
        for norm in ("ln_1", "ln_2"):
            shapes[f"{h}.{norm}.weight"] = shapes[f"{h}.{norm}.bias"] = (d,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (d,)
    return shapes


def digest(file: Path, progress: Callable[[int, int], None]) -> str:
    """Return the SHA-256 of a file as hex; `progress(done, total)` counts bytes."""
    total, done, sha = file.stat().st_size, 0, hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            sha.update(chunk)
            done += len(chunk)
            progress(done, total)
    return sha.hexdigest()


class GraphCache:
    """Built graphs on disk, by content: a folder each, complete when it appears, the least recently used out first."""

    FORMAT = 2
    """Raised whenever graph.py or quantise.py build something else from the same weights."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def get(self, name: str, build: Callable[[], Graph]) -> Path:
        """Return the path of the ONNX file called `name`, built where it is missing."""
        entry = self._folder / f"{name}-v{self.FORMAT}"
        file = entry / MODEL_FILE
        if file.is_file():
            entry.touch()
            return file
        graph = build()
        self._folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=".building-", dir=self._folder))
        try:
            graph.write(draft)
            try:
                draft.rename(entry)
            except OSError:
                if not file.is_file():  # else another worker was faster
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._trim(keep=entry)
        return file

    def _trim(self, keep: Path) -> None:
        entries = sorted((p for p in self._folder.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        sizes = {p: sum(f.stat().st_size for f in p.iterdir()) for p in entries}
        for entry in entries:
            if sum(sizes.values()) <= self._max_bytes:
                return
            if entry != keep and not entry.name.startswith("."):
                shutil.rmtree(entry, ignore_errors=True)
                del sizes[entry]


def load_engine(
    folder: Path, arch: Architecture, engine: str, precision: str, rows: int, threads: int,
    cache_dir: Path, cache_bytes: int, progress: Callable[[str, int, int, str], None],
) -> tuple[Engine, str]:  # fmt: skip
    """Make an engine of a model's folder; return it and the digest of the weights.

    `progress(stage, done, total, unit)`. Raises: BadModel, OSError, MemoryError, and what the runtime raises.
    """
    file = folder / "model.safetensors"
    sha = digest(file, lambda done, total: progress("check", done, total, "bytes"))

    def build_graph() -> Graph:
        return build(arch, Weights(file, arch), precision, lambda done, total: progress("build", done, total, "layers"))

    # The number of heads is in the config alone.
    content = hashlib.sha256(f"{sha} {arch}".encode()).hexdigest()[:32]
    graph = GraphCache(cache_dir, cache_bytes).get(f"{content}-{engine}-{precision}", build_graph)
    progress("open", 0, 1, "graph")
    made = OnnxEngine(arch, graph, rows, threads)
    progress("open", 1, 1, "graph")
    return made, sha
