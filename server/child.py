"""What the processes have in common that the gateway starts: none of them outlives it."""

from __future__ import annotations

import contextlib
import os
import threading

import psutil


def end_with_stdin() -> None:
    """End this process, and all that it has started, when its stdin closes. What comes before that is dropped."""
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    while os.read(0, 1):
        pass
    for child in psutil.Process().children(recursive=True):  # a fetch or a compiler
        with contextlib.suppress(psutil.Error):
            child.kill()
    os._exit(0)
