"""A model's tensors, from the files of its weights. Used in workers only."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from protocol.errors import BadModel
from server.catalogue.architecture import Architecture
from server.catalogue.files import model_files
from server.checkpoint.torch_file import SAYS, TorchFile

Report = Callable[[str, int, int, str], None]
"""progress(stage, done, total, unit), as protocol.messages.Progress has them."""
PREFIX = "transformer."
WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before every name."""
HEAD, TABLE = "lm_head.weight", "wte.weight"
OWN = re.compile(r"(^|\.)(wte|wpe|ln_f|h\.[0-9]+)\.")
"""What the names of a GPT-2's tensors have in common."""
OTHER_HEAD = (
    "config.json says that the LM head is the token table, and the weights have a head with other values: it is used, "
    "as by transformers 5 (4.57 used the table)"
)
MAX_HEADER_BYTES = 16 << 20
STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}
"""The types that are read, by safetensors' names; NumPy has no bfloat16, of which the bits are taken."""


class Stored(Protocol):
    """A file of weights, by the names that it has."""

    def names(self) -> list[str]: ...

    def dtype(self, name: str) -> str:
        """Return the type by its name in safetensors."""

    def check(self, name: str, shape: tuple[int, ...], says: str = SAYS) -> None:
        """Check that a tensor has this shape, as `says` says. Raises: BadModel."""

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the numbers as they are stored, bfloat16 as its bits. Raises: BadModel, OSError."""


class SafeFile:
    """A safetensors file: checked by its library, and mapped here, since that has no bfloat16 for NumPy."""

    def __init__(self, file: Path) -> None:
        """Raises: BadModel."""
        self._file = file
        try:
            with safe_open(file, framework="numpy"):  # checks the header: its size, and where each tensor lies
                pass
            with file.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                if size > MAX_HEADER_BYTES:
                    raise BadModel(f"{file.name} has a header of {size} bytes, more than any model's")
                self._header = json.loads(stream.read(size))
        except (SafetensorError, OSError, ValueError, RecursionError) as e:
            raise BadModel(f"{file.name} cannot be read: {e}") from None
        self._header.pop("__metadata__", None)
        self._begin = 8 + size

    def names(self) -> list[str]:
        return list(self._header)

    def dtype(self, name: str) -> str:
        return str(self._header[name]["dtype"])

    def check(self, name: str, shape: tuple[int, ...], says: str = SAYS) -> None:
        if (found := tuple(self._header[name]["shape"])) != shape:
            raise BadModel(f"{self._file.name}: {name} has shape {list(found)}, {says} {list(shape)}")

    def read(self, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
        return np.memmap(
            self._file, STORED[self.dtype(name)], "r", self._begin + self._header[name]["data_offsets"][0], shape
        )


class Tensors(Mapping[str, NDArray[np.float32]]):
    """A model's tensors by GPT-2's own names, which `_shapes` has."""

    _shapes: dict[str, tuple[int, ...]]

    @property
    def has_head(self) -> bool:
        """Return whether the head has values of its own."""
        return HEAD in self._shapes

    @property
    @abstractmethod
    def notices(self) -> tuple[str, ...]:
        """Return what a user should know of how these files are read."""

    @abstractmethod
    def _tensor(self, name: str) -> NDArray[np.float32]: ...

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        """Return a tensor. Raises: BadModel where it is not all numbers, which would show in no text at 8 or 4 bits."""
        tensor = self._tensor(name)
        if not np.isfinite([tensor.min(), tensor.max()]).all():
            raise BadModel(
                f"{name} is not all numbers (NaN or infinite), as after a training that has diverged or has left the "
                "range of float16: take a checkpoint from before that"
            )
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class Weights(Tensors):
    """GPT-2's tensors by its own names, without `transformer.`; each is read and made float32 when asked for.

    What is stored beside them (attention masks, other heads) is not looked at. Where only one of the token table and
    the head is stored, it is both; a head with other values than the table is a tensor of its own.

    Raises: BadModel, at once, if a tensor is missing, has another shape than the architecture says, or a type that is
    not read; OSError.
    """

    def __init__(self, folder: Path, arch: Architecture) -> None:
        files = model_files(folder).weights
        self._tied = arch.tied
        self._stored = _by_name(files)
        self._shapes = expected_shapes(arch)
        if not arch.tied and (missing := [name for name in (TABLE, HEAD) if name not in self._stored]):
            raise BadModel(
                f"config.json has tie_word_embeddings=false, and {files[0].name} has no tensor {missing[0]}; if the "
                "head is the token table, set it to true"
            )
        if TABLE not in self._stored and HEAD in self._stored:
            self._stored[TABLE] = self._stored.pop(HEAD)
        for name, shape in self._shapes.items():
            self._check(name, shape, files[0])
        if HEAD in self._stored:
            self._check(HEAD, self._shapes[TABLE], files[0])
            shape = self._shapes[TABLE]
            if not np.array_equal(self._read(HEAD, shape), self._read(TABLE, shape)):
                self._shapes[HEAD] = self._shapes[TABLE]

    @property
    def notices(self) -> tuple[str, ...]:
        return (OTHER_HEAD,) if self.has_head and self._tied else ()

    def _check(self, name: str, shape: tuple[int, ...], first: Path) -> None:
        if name not in self._stored:
            raise BadModel(f"{first.name} has no tensor {name}{_hint(self._stored)}")
        file, stored = self._stored[name]
        if (dtype := file.dtype(stored)) not in STORED:
            raise BadModel(
                f"{name} is stored as {dtype}: quantised weights are not read; save the model in float32, float16 or "
                "bfloat16, and choose a precision when it is loaded"
            )
        file.check(stored, shape)

    def _read(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        file, stored = self._stored[name]
        return as_float32(file.read(stored, shape), file.dtype(stored))

    def _tensor(self, name: str) -> NDArray[np.float32]:
        return self._read(name, self._shapes[name])


def open_stored(file: Path) -> Stored:
    """Open a file of weights. Raises: BadModel, OSError."""
    return SafeFile(file) if file.suffix == ".safetensors" else TorchFile(file)


def as_float32(numbers: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Return a copy as float32; of bfloat16 the bits are given, which are the upper half of a float32's."""
    if dtype == "BF16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite in torch, too
        return np.array(numbers, np.float32, order="C")


def _by_name(files: tuple[Path, ...]) -> dict[str, tuple[Stored, str]]:
    """Return {GPT-2's name: its file and its name there}; other tensors keep some name. Raises: BadModel."""
    found: dict[str, tuple[Stored, str]] = {}
    for file in files:
        stored = open_stored(file)
        for name in stored.names():
            if name in found:
                raise BadModel(f"{file.name} and another file both have {name}")
            found[name] = (stored, name)
    while found and (wrapper := next((w for w in WRAPPERS if all(n.startswith(w) for n in found)), "")):
        found = {name.removeprefix(wrapper): place for name, place in found.items()}
    if not any(name.startswith(PREFIX) for name in found):
        return found
    # As transformers does: where one name has the prefix, names without it are not the model's, but for the head.
    return {n.removeprefix(PREFIX): place for n, place in found.items() if n.startswith(PREFIX) or n == HEAD}


def _hint(stored: Mapping[str, object]) -> str:
    """Return what is before the names, where a part of GPT-2's is among them, or that none is a GPT-2's."""
    if not any(OWN.search(name) for name in stored):
        return ", nor any other of a GPT-2: save the model with transformers' save_pretrained"
    name = next((name for name in stored if name.endswith((TABLE, "h.0.ln_1.weight"))), "")
    prefix = name.removesuffix(TABLE).removesuffix("h.0.ln_1.weight")
    return f": its names begin with {prefix[:80]!a}; save it without that" if prefix else ""


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
