"""Look into models' files without loading them: a process of low priority, which the gateway starts.

The first line of stdin names the folder of notes and those of the models, as JSON; these in hexadecimal, since a path
need not be text. It writes each folder's number before it looks into it, and ends with its stdin, as a worker does.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path

import psutil

from protocol.errors import BadModel
from server.catalogue import findings
from server.catalogue.architecture import read_architecture
from server.catalogue.findings import Finding
from server.checkpoint.tensors import Weights
from server.checkpoint.tokenizer import read_tokenizer

LOWEST = 19


def inspect(folder: Path) -> Finding:
    """Return what loading the folder's model would find out before it reads a weight. Raises: OSError."""
    try:
        arch = read_architecture(folder)
        tokenizer = read_tokenizer(folder)
        weights = Weights(folder, arch)
    except BadModel as e:
        return Finding(problem=str(e))
    return Finding(notices=[*weights.notices, *tokenizer.notices])


def inspect_all(folders: list[Path], cache_dir: Path) -> None:
    """Inspect each folder and keep the finding, unless its files have changed meanwhile."""
    for number, folder in enumerate(folders):
        print(number, flush=True)
        with contextlib.suppress(OSError, BadModel):  # it is gone, or not a model any more
            seen = findings.state(folder)
            finding = inspect(folder)
            if findings.state(folder) == seen:
                findings.keep(folder, cache_dir, seen, finding)


def main() -> None:
    orders = json.loads(sys.stdin.buffer.readline())
    folders = [Path(os.fsdecode(bytes.fromhex(folder))) for folder in orders["folders"]]
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    with contextlib.suppress(psutil.AccessDenied):
        psutil.Process().nice(getattr(psutil, "IDLE_PRIORITY_CLASS", LOWEST))  # Windows has classes
    inspect_all(folders, Path(orders["cache_dir"]))


def _end_with_stdin() -> None:
    while os.read(0, 1):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
