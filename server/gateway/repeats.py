"""Log lines that peers can cause: a limited number a second, or a flood of them would fill the log.

systemd's journal takes 10,000 lines of a service in 30 s and drops all that come after, warnings among them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

log = logging.getLogger("gpt2d")

QUIET_S = 1.0
"""Least time between two warnings of one kind; the next one says how many there were meanwhile."""
MOST_LINES_S = 100
"""Most lines about requests in a second."""


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


class Ration:
    """Logs what becomes of requests, and whose they are, as long as there are not too many; a later line says how many
    were left out.
    """

    def __init__(self, name: Callable[[str], str]) -> None:
        """Begin. `name(user)`: the name of a user's key, empty on a server without keys."""
        self._name = name
        self._allowance = float(MOST_LINES_S)
        """Number of lines that may come at once (a token bucket)."""
        self._counted = time.monotonic()
        self._left_out = 0

    def info(self, user: str, what: str) -> None:
        now = time.monotonic()
        self._allowance = min(MOST_LINES_S, self._allowance + (now - self._counted) * MOST_LINES_S)
        self._counted = now
        if self._allowance < 1:
            self._left_out += 1
            return
        self._allowance -= 1
        if self._left_out:
            log.info("%d lines about requests were left out before this one", self._left_out)
            self._left_out = 0
        name = self._name(user)
        log.info("%s%s", what, f", for {name}" if name else "")
