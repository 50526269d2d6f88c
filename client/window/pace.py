"""When the window draws: at once for keys and clicks, as often as a frame's cost allows for a stream, never at rest.

Pure: the loop says what happened and what time it is.
"""

from __future__ import annotations

import math
import statistics
from collections import deque

IDLE_S = 1.0
"""Seconds between two looks at the state where nothing is new."""
FRAME_S = 1 / 60
MOVE_S = 1 / 30
"""Least seconds between two frames that show a pointer that moves."""
STREAM_S = 1 / 20
"""Least seconds between two frames that show incoming text. Nobody reads faster: more frames show the same words a
moment earlier, and take the time in which the next ones would be written.
"""
TOGETHER_S = 0.005
"""Seconds within which all comes that the server has sent together: the pieces of several texts, the last piece and the
result. Meanwhile those who bring it are done, who would hold a frame up.
"""
PIECES_MS = 66
"""Least milliseconds between two pieces of a text that the server is asked for: a little more than STREAM_S, so that
each piece is shown at once, and none wakes the server and this process only to wait for the next.
"""
SHARE = 0.25
"""Most of a core that such frames take: the decoder, which writes what they show, wants the others and most of this."""
SLOWEST_S = 0.5
REST_SHARE = 0.006
"""Most of a core that frames take which only bring figures up to date: how long a server has been gone, its memory."""
SETTLE = 3
"""Number of frames after a key or a click: Dear ImGui needs them to settle."""
FOLLOW_S = (0.2, 0.4)
"""Seconds after which a pointer that has come to rest is looked at again: what lies under it is explained then."""
COSTS = 9
"""Number of frames of whose costs the median counts: one that loads fonts says nothing of the next."""


class Pace:
    def __init__(self) -> None:
        self._looked = self._drawn = -math.inf
        self._settle, self._moving = SETTLE, 0
        self._follow: list[float] = []
        self._costs: deque[float] = deque(maxlen=COSTS)

    @property
    def pause(self) -> float:
        """Seconds from one frame to the next while nothing changes but what streams in."""
        return self._pause(STREAM_S)

    @property
    def interval_ms(self) -> int:
        """Milliseconds between two pieces of a text that are as many as frames show."""
        return max(PIECES_MS, math.ceil(self.pause * 1000))

    def _pause(self, least: float) -> float:
        return min(SLOWEST_S, max(least, self._cost / SHARE))

    @property
    def _cost(self) -> float:
        return statistics.median(self._costs) if self._costs else 0.0

    def struck(self) -> None:
        """Note a key, a click or another change that is to be seen at once."""
        self._settle = SETTLE

    def moved(self, now: float, drags: bool) -> None:
        """Note that the pointer moves. What it `drags` follows it at once."""
        self._moving = 1
        self._settle = max(self._settle, int(drags))
        self._follow = [now + after for after in FOLLOW_S]

    def due(self, news: float | None, until: float = math.inf) -> float:
        """Return the time of the next look at the state. `news`: when something came in first that no look has taken
        yet, if anything did; `until`: when something on the screen expires.
        """
        if self._settle:
            return self._looked + FRAME_S
        if self._moving:
            return self._looked + self._pause(MOVE_S)
        if news is not None:
            return max(self._looked + self.pause, news + TOGETHER_S)
        return min(self._looked + IDLE_S, until, *self._follow)

    def look(self, now: float) -> bool:
        """Begin a look at the state; return True if it owes a frame, whatever is found."""
        owes = bool(self._settle or self._moving) or any(at <= now for at in self._follow)
        self._looked = now
        self._settle, self._moving = max(0, self._settle - 1), 0
        self._follow = [at for at in self._follow if at > now]
        return owes

    def refreshes(self, now: float) -> bool:
        """True if a frame is due that only brings figures up to date."""
        return now - self._drawn >= self._cost / REST_SHARE

    def drew(self, cpu_s: float) -> None:
        """Note what a frame cost in seconds of CPU over all threads."""
        self._drawn = self._looked
        self._costs.append(cpu_s)
