"""Log lines that a peer can cause: each kind at most once a second, or a flood of them would fill the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable

log = logging.getLogger("gpt2d")

QUIET_S = 1.0
"""Least time between two lines of one kind; the next line says how many there were meanwhile."""


class Repeats:
    """Logs warnings by kind; each kind is counted by itself, or one would hide another.

    There must be few kinds: what peers can make more of, such as names, belongs into the text.
    """

    def __init__(self) -> None:
        self._kinds: dict[Hashable, tuple[float, int]] = {}
        """Kind -> when it was last logged, and how many more there have been since."""

    def warn(self, kind: Hashable, what: str) -> None:
        now = time.monotonic()
        last, more = self._kinds.get(kind, (-QUIET_S, 0))
        if now < last + QUIET_S:
            self._kinds[kind] = last, more + 1
            return
        log.warning("%s%s", what, f" (and {more} more before)" if more else "")
        self._kinds[kind] = now, 0
