"""Gives memory back to the system: glibc keeps what crowds and floods have left free, for a day that may not come."""

from __future__ import annotations

import ctypes
import sys
import time

import psutil

EACH_S = 5.0
GROWN_BYTES = 16 << 20
"""Growth beyond the least size from which it is worth the milliseconds that it takes."""


class Memory:
    """Used by the gateway's thread only."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._least = self._process.memory_info().rss
        self._looked = time.monotonic()
        self._ended = 0
        try:
            self._trim = ctypes.CDLL(None).malloc_trim if sys.platform == "linux" else None
        except AttributeError:  # musl gives back by itself
            self._trim = None

    def look(self, ended: int) -> None:
        """Give back what is free, if the process is larger than it was and connections have ended: `ended` so far."""
        now = time.monotonic()
        if self._trim is None or now < self._looked + EACH_S or ended == self._ended:
            return
        self._looked, self._ended = now, ended
        resident = self._process.memory_info().rss
        self._least = min(self._least, resident)
        if resident > self._least + GROWN_BYTES:
            self._trim(0)
