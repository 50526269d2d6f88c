"""Look into models' files without loading them: a process of low priority, which the gateway starts.

The first line of stdin names the folder of notes and those of the models, each with that of its base, which only an
adapter has, as JSON; these in hexadecimal, since a path need not be text. It writes each folder's number before it
looks into it, and ends with its stdin, as a worker does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

import psutil

from protocol.errors import BadModel, printable
from server.catalogue import findings
from server.catalogue.adapters import architecture_of, tokenizer_folder
from server.catalogue.findings import Finding
from server.checkpoint.lora import open_weights
from server.checkpoint.tokenizer import read_tokenizer
from server.child import end_with_stdin

LOWEST = 19


def inspect(folder: Path, base: Path | None = None) -> Finding:
    """Return what loading the folder's model would find out before it reads a weight. Raises: OSError."""
    try:
        arch = architecture_of(folder, base)
        tokenizer = read_tokenizer(tokenizer_folder(folder, base))
        tokenizer.check_vocabulary(arch.vocabulary)
        weights = open_weights(folder, arch, base)
    except BadModel as e:
        return Finding(problem=printable(str(e)))
    return Finding(notices=[printable(notice) for notice in (*weights.notices, *tokenizer.notices)])


def inspect_all(folders: list[tuple[Path, Path | None]], cache_dir: Path) -> None:
    """Inspect each folder, with its base, and keep the finding, unless its files have changed meanwhile."""
    for number, (folder, base) in enumerate(folders):
        print(number, flush=True)
        with contextlib.suppress(OSError, BadModel):  # it is gone, or not a model any more
            seen = findings.state(folder, base)
            finding = inspect(folder, base)
            if findings.state(folder, base) == seen:
                findings.keep(folder, cache_dir, seen, finding)


def main() -> None:
    orders = json.loads(sys.stdin.buffer.readline())
    folders = [(_path(folder), _path(base) if base else None) for folder, base in orders["folders"]]
    end_with_stdin()
    with contextlib.suppress(psutil.AccessDenied):
        psutil.Process().nice(getattr(psutil, "IDLE_PRIORITY_CLASS", LOWEST))  # Windows has classes
    inspect_all(folders, Path(orders["cache_dir"]))


def _path(hexadecimal: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(hexadecimal)))


if __name__ == "__main__":
    main()
