"""What a look into a model's files has found, kept as long as these do not change.

The look itself takes tokenizers and safetensors (checkpoint/inspection.py): a process of its own has them, and the
gateway, which loads no model library, reads what is noted here.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import msgspec

from protocol.programs import VERSION
from server.catalogue.files import model_files
from server.catalogue.notes import file_state, named_after, replace

FORMAT = 2
"""Changes when other things are looked at, so that what was found before is looked at again."""
MAX_BYTES = 64 << 10


class Finding(msgspec.Struct, frozen=True):
    """What a user should know of a model before it is loaded. `problem`: why it cannot be; empty where it can."""

    problem: str = ""
    notices: list[str] = []


class _Note(msgspec.Struct):
    state: str
    finding: Finding


def state(folder: Path, base: Path | None = None) -> str:
    """Return what changes when a file of the folder's model does, or of its base. Raises: BadModel, OSError."""
    files = (*model_files(folder).all, *(model_files(base).all if base else ()))
    states = " ".join(file_state(file) for file in files)
    return ascii(f"{FORMAT} {VERSION} {states}")  # a path need not be text


def found(folder: Path, cache_dir: Path, now: str) -> Finding | None:
    """Return what is known of the folder in the `state` of now; None where nobody has looked since it changed."""
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        with _file(folder, cache_dir).open("rb") as file:
            note = msgspec.json.decode(file.read(MAX_BYTES), type=_Note)
        if note.state == now:
            return note.finding
    return None


def keep(folder: Path, cache_dir: Path, seen: str, finding: Finding) -> None:
    """Note what was found in the folder, whose state was `seen`. Raises: OSError."""
    replace(_file(folder, cache_dir), msgspec.json.encode(_Note(seen, finding)))


def _file(folder: Path, cache_dir: Path) -> Path:
    return named_after(folder, cache_dir, ".finding")
