"""A model's files: its tensors from safetensors, and the disk cache of what is built of them. Used in workers only."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from protocol.errors import BadModel
from server.catalogue.architecture import Architecture
from server.catalogue.engines import BUILD_FORMAT, SUMS_FILE
from server.catalogue.notes import digest

Report = Callable[[str, int, int, str], None]
"""progress(stage, done, total, unit), as protocol.messages.Progress has it."""
PREFIX = "transformer."
DRAFT = ".building-"
STALE_S = 3600.0


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
        for name, shape in (
            ("attn.c_attn", (d, 3 * d)),
            ("attn.c_proj", (d, d)),
            ("mlp.c_fc", (d, inner)),
            ("mlp.c_proj", (inner, d)),
        ):
            shapes[f"{h}.{name}.weight"] = shape
            shapes[f"{h}.{name}.bias"] = shape[1:]
        for norm in ("ln_1", "ln_2"):
            shapes[f"{h}.{norm}.weight"] = shapes[f"{h}.{norm}.bias"] = (d,)
    shapes["ln_f.weight"] = shapes["ln_f.bias"] = (d,)
    return shapes


class Built(Protocol):
    """What is kept on disk: an engine's own form of the weights."""

    def write(self, folder: Path) -> None: ...


class BuildCache:
    """Built models on disk, by content: a folder each, complete when it appears, the least recently used out first.

    What cannot be written to the cache (a full or read-only disk) is built into a temporary folder instead.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def get(self, name: str, build: Callable[[], Built]) -> Path:
        """Return the folder of what is called `name`, built where it is missing or damaged. Raises: OSError."""
        entry = self.folder(name)
        if _intact(entry):
            with contextlib.suppress(OSError):
                os.utime(entry)
            return entry
        built = build()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            self._store(built, entry)
            self.trim(keep=entry)
        except OSError as e:
            print(f"the cache of built models {self._folder} cannot be used: {e}", file=sys.stderr)
            temporary = Path(tempfile.mkdtemp(prefix="gpt2d-built-"))
            _write(built, temporary)
            return temporary
        return entry

    def folder(self, name: str) -> Path:
        """Where what is called `name` is kept."""
        return self._folder / f"{name}-v{BUILD_FORMAT}"

    def opened(self, folder: Path) -> None:
        """An engine has opened what `get` returned: a temporary folder is not needed any more."""
        if self._folder not in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)

    def _store(self, built: Built, entry: Path) -> None:
        draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=self._folder))
        try:
            _write(built, draft)
            if entry.exists():  # damaged: out of the way in one step, so that nobody sees half of it
                entry.rename(draft / "damaged")
            draft.rename(entry)
        except OSError:
            if not _intact(entry):  # else another worker was faster
                raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            shutil.rmtree(entry / "damaged", ignore_errors=True)

    def _sweep(self) -> None:
        """Delete the drafts of workers that were ended while they built."""
        for draft in self._folder.glob(f"{DRAFT}*"):
            with contextlib.suppress(OSError):
                if time.time() - draft.stat().st_mtime > STALE_S:
                    shutil.rmtree(draft, ignore_errors=True)

    def trim(self, keep: Path) -> None:
        """Delete the least recently used of what is too much, but `keep`."""
        ages: dict[Path, float] = {}
        sizes: dict[Path, int] = {}
        for entry in self._folder.glob("*-v*"):
            with contextlib.suppress(OSError):  # another worker may be deleting it
                sizes[entry] = sum(f.stat().st_size for f in entry.rglob("*"))
                ages[entry] = entry.stat().st_mtime
        for entry in sorted(ages, key=ages.__getitem__):
            if sum(sizes.values()) <= self._max_bytes:
                return
            if entry != keep:
                with contextlib.suppress(OSError):
                    doomed = entry.rename(self._folder / f"{DRAFT}{entry.name}")
                    shutil.rmtree(doomed, ignore_errors=True)
                    del sizes[entry]


def _write(built: Built, folder: Path) -> None:
    built.write(folder)
    (folder / SUMS_FILE).write_text(_sums(folder))


def _sums(folder: Path) -> str:
    return "".join(
        f"{digest(f, lambda *_: None)}  {f.name}\n"
        for f in sorted(folder.iterdir())
        if f.is_file() and f.name != SUMS_FILE
    )


def _intact(folder: Path) -> bool:
    """True if every byte is as it was written."""
    try:
        return (folder / SUMS_FILE).read_text() == _sums(folder)
    except OSError:
        return False
