"""One list of a model's files: what is hashed, downloaded, sized, sent to other machines and read is named here.

Loads no model library: the gateway imports it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import BadModel

EMBEDDED_FOLDER = Path(__file__).parent.parent / "demo_model"
CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
CHAT_FILE = "chat_template.jinja"
WEIGHTS_FILE = "model.safetensors"
TORCH_FILE = "pytorch_model.bin"
INDEX = ".index.json"
WEIGHTS_FILES = (WEIGHTS_FILE, f"{WEIGHTS_FILE}{INDEX}", TORCH_FILE, f"{TORCH_FILE}{INDEX}")
"""Where weights are looked for, in transformers' order: the first that is there is read."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Where an adapter's weights are looked for, in peft's order."""
TOKENIZER_FILES = (
    ("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",),
    ("spiece.model",), ("sentencepiece.bpe.model",), ("tokenizer.model",),
)  # fmt: skip
"""Files that together are a tokenizer: any of these may do, which one the tokenizer's class says."""
NO_TOKENIZER = (
    "tokenizer.json (or vocab.json with merges.txt, or vocab.txt, or spiece.model) is missing: copy the files of the "
    "tokenizer that it was trained with into its folder"
)
OTHER_FILES = (
    GENERATION_FILE, CHAT_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    *(name for names in TOKENIZER_FILES for name in names),
)  # fmt: skip
"""What may lie beside: it goes wherever the model goes."""
NOT_READ = (
    "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "model.ckpt.index", "*.gguf", "*.onnx", "openvino_model.xml",
    "*.npz", "*.ckpt", "ckpt.pt", "model.pt", "model.pth", "consolidated.*",
)  # fmt: skip
"""Weights of other programs, the likeliest first."""
A_MODEL = "a model's folder has it beside weights and a tokenizer, as transformers' save_pretrained writes them"
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 4 << 20
MAX_SHARDS = 256
POINTER, MAX_POINTER_BYTES = b"version https://git-lfs", 1024
SHARD = re.compile(r"[\w-][\w.-]*", re.ASCII)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model's folder, all of which are there."""

    weights: tuple[Path, ...]
    """One, or the shards by name."""
    index: Path | None
    others: tuple[Path, ...]
    """The configuration, the tokenizer and what belongs to them."""

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.others, *([self.index] if self.index else []), *self.weights)

    @property
    def weight_bytes(self) -> int:
        """Size of the weights. Raises: OSError."""
        return sum(file.stat().st_size for file in self.weights)


def model_files(folder: Path) -> ModelFiles:
    """Return what the folder's model consists of. Raises: BadModel, which says what is missing and what to do; OSError.

    Of the tokenizer only that is looked at, which files there are: `has_tokenizer` says whether they are enough.
    An adapter's base is another folder.
    """
    found = _adapter_files(folder) if is_adapter(folder) else _whole_files(folder)
    for file in found.all:
        if is_pointer(file):
            raise BadModel(f"{file.name} is a Git LFS pointer: run git lfs pull in its folder")
    return found


def hashed_files(folder: Path, base: Path | None) -> tuple[Path, ...]:
    """Return what a model's digest is made of: its weights; of an adapter also how they are scaled, and its base's.

    Raises: BadModel, OSError.
    """
    weights = model_files(folder).weights
    return (*weights, folder / ADAPTER_CONFIG, *model_files(base).weights) if base else weights


def is_adapter(folder: Path) -> bool:
    """Return whether a folder has an adapter of peft, which needs a base."""
    return (folder / ADAPTER_CONFIG).is_file()


def _whole_files(folder: Path) -> ModelFiles:
    name = next((name for name in WEIGHTS_FILES if (folder / name).is_file()), None)
    if name is None:
        raise BadModel(_without_weights(folder))
    index = folder / name if name.endswith(INDEX) else None
    weights = tuple(folder / shard for shard in shards(index)) if index else (folder / name,)
    if missing := [file.name for file in weights if not file.is_file()]:
        raise BadModel(
            f"{name} names {', '.join(missing[:3])}, and {'it is' if len(missing) == 1 else 'they are'} missing"
        )
    return ModelFiles(weights, index, _others(folder, CONFIG_FILE))


def _adapter_files(folder: Path) -> ModelFiles:
    """Return an adapter's files. Its folder is not a model's too: which of the two is meant cannot be known."""
    if whole := next((name for name in WEIGHTS_FILES if (folder / name).is_file()), None):
        raise BadModel(
            f"the folder has both {ADAPTER_CONFIG} and {whole}: leave the adapter here and move {whole} away, or take "
            f"the adapter away if {whole} is the whole model"
        )
    name = next((name for name in ADAPTER_FILES if (folder / name).is_file()), None)
    if name is None:
        hint = deeper(folder, ADAPTER_FILES)
        raise BadModel(f"{' (or '.join(ADAPTER_FILES)}) is missing, the weights of {ADAPTER_CONFIG}{hint}")
    return ModelFiles((folder / name,), None, _others(folder, ADAPTER_CONFIG))


def _others(folder: Path, config: str) -> tuple[Path, ...]:
    return tuple(file for other in (config, *OTHER_FILES) if (file := folder / other).is_file())


def shards(index: Path) -> list[str]:
    """Return the names of the files that an index names. Raises: BadModel, OSError."""
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise BadModel(f"{index.name} is over {MAX_INDEX_BYTES} bytes")
    ending = Path(index.name.removesuffix(INDEX)).suffix
    try:
        placed = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        names = sorted(set(placed))
        fine = 0 < len(names) <= MAX_SHARDS and all(SHARD.fullmatch(n) and n.endswith(ending) for n in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise BadModel(f"{index.name} cannot be read ({type(e).__name__}: {e})") from None
    if not fine:
        raise BadModel(f"{index.name} must name 1 to {MAX_SHARDS} files of its folder that end in {ending}")
    return names


def has_tokenizer(folder: Path) -> bool:
    return any(all((folder / file).is_file() for file in files) for files in TOKENIZER_FILES)


def read_map(file: Path) -> dict[str, Any]:
    """Read a configuration in JSON. Raises: BadModel, which says what is wrong with the file."""
    try:
        if is_pointer(file):
            raise BadModel(f"{file.name} is a Git LFS pointer: run git lfs pull in its folder")
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise BadModel(f"{file.name} is over {MAX_CONFIG_BYTES} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise BadModel(f"{file.name} cannot be read: {without_folder(e)}") from None
    if not isinstance(found, dict):
        raise BadModel(f"{file.name} is not a map")
    return found


def without_folder(error: BaseException) -> str:
    """Return what an error says, without the place of the file that it is about: clients are sent it."""
    if isinstance(error, OSError) and error.strerror:
        return f"{Path(os.fsdecode(error.filename)).name}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def is_pointer(file: Path) -> bool:
    """Return whether git left its word for a large file here instead of the file. Raises: OSError."""
    if file.stat().st_size > MAX_POINTER_BYTES:
        return False
    with file.open("rb") as stream:
        return stream.read(len(POINTER)) == POINTER


def deeper(folder: Path, names: Iterable[str]) -> str:
    """Return a hint where a folder in this one has what is missing here, else nothing."""
    names = list(names)
    found = sorted((f.name for f in _folders(folder) if any((f / name).is_file() for name in names)), key=_last)
    return f"; look one folder deeper: {found[-1]}" if found else ""


def _folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from (entry for entry in folder.iterdir() if entry.is_dir())


def _last(name: str) -> tuple[int, str]:
    """Sort checkpoint-500 before checkpoint-1000."""
    number = re.search(r"(\d{1,12})$", name)
    return (int(number[1]) if number else -1, name)


def without_config(folder: Path) -> str:
    """Say what is there instead of a configuration."""
    if hint := deeper(folder, [CONFIG_FILE, ADAPTER_CONFIG]):
        return f"{CONFIG_FILE} is missing{hint}"
    known = any((folder / name).is_file() for name in WEIGHTS_FILES)
    return ("" if known else _of_another(folder)) or f"{CONFIG_FILE} is missing: {A_MODEL}"


def _without_weights(folder: Path) -> str:
    """Say what is there instead of weights."""
    if other := _without_index(folder) or _of_another(folder) or _misnamed(folder):
        return other
    hint = deeper(folder, WEIGHTS_FILES)
    return f"{WEIGHTS_FILE} (or {TORCH_FILE}, or shards with a {WEIGHTS_FILE}{INDEX}) is missing{hint}"


def _of_another(folder: Path) -> str:
    """Return a sentence where another program's weights are here, or an adapter's; else nothing."""
    if adapter := next((name for name in ADAPTER_FILES if (folder / name).is_file()), ""):
        return f"{adapter} is here without {ADAPTER_CONFIG}, which peft writes beside it: copy that, too"
    found = (file.name for pattern in NOT_READ for file in sorted(folder.glob(pattern)) if file.is_file())
    if name := next(found, ""):
        return (
            f"the weights are in {name}, which is not read: save them once with transformers' save_pretrained, which "
            f"writes {WEIGHTS_FILE}"
        )
    return ""


def _without_index(folder: Path) -> str:
    """Return a sentence where shards have no index; else nothing."""
    for whole in (WEIGHTS_FILE, TORCH_FILE):
        if shard := next((name for name in _like(folder, whole) if "-of-" in name), ""):
            return f"{shard} is here without {whole}{INDEX}, which names all shards: copy that, too"
    return ""


def _misnamed(folder: Path) -> str:
    """Return a sentence where weights have another name; else nothing."""
    here = _like(folder, WEIGHTS_FILE)
    if len(here) != 1:
        return ""
    return f"weights are looked for in {WEIGHTS_FILE}, and here is {here[0]}: if these are the model's, rename it"


def _like(folder: Path, name: str) -> list[str]:
    """Return the names of files that end as this one."""
    return [file.name for file in sorted(folder.glob(f"*{Path(name).suffix}")) if file.is_file()]
