"""Cost of one more token in a step, from the worker's own steps.

It depends on the machine, on what else it does, and on the number of threads: on gpt2 between 7 and 15 % of a step of
one token. So it is measured all the time: a moving average of the time that steps take, for each number of tokens and
of threads, and a line through these averages.
"""

from __future__ import annotations

import time
from collections.abc import Callable

ROW_COST = 0.15
"""Cost before anything has been measured, as a share of a step of one token: gpt2 at 8 and 4 bits on two cores."""
MOST_TOKENS = 16
"""Largest number of tokens of a step that counts. Beyond it arithmetic alone decides, and the line would bend."""
WEIGHT = 0.1
"""Weight of the latest step in the average of its kind."""
FRESH_S = 30.0
"""Time after its latest step in which an average counts: a machine's memory has states that last for minutes."""
LOOK_S = 0.25
"""Time between two looks at the averages."""
DOUBT = 2.0
"""Weight of ROW_COST in the line's slope, in squares of tokens: steps of one and of two tokens say less than it."""
LEAST, MOST = 0.01, 1.0


class Costs:
    """Moving averages of the time of steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._steps: dict[tuple[int, int], tuple[float, float]] = {}
        """(Tokens, threads) -> milliseconds of such a step, and when the latest was."""
        self._found: dict[int, tuple[float, float]] = {}
        """Threads -> cost as it was found, and when."""

    def note(self, tokens: int, threads: int, ms: float) -> None:
        """Note how long a step took that had no part of a prompt."""
        if tokens <= MOST_TOKENS:
            average, _ = self._steps.get((tokens, threads), (ms, 0.0))
            self._steps[tokens, threads] = average + WEIGHT * (ms - average), self._clock()

    def of_row(self, threads: int) -> float:
        """Return the cost of one more token, as a share of a step of one."""
        now = self._clock()
        cost, at = self._found.get(threads, (ROW_COST, -LOOK_S))
        if now >= at + LOOK_S:
            cost = self._line(threads, now)
            self._found[threads] = cost, now
        return cost

    def _line(self, threads: int, now: float) -> float:
        """Return the slope of the line through the averages, over its value at one token."""
        points = [
            (tokens, ms) for (tokens, used), (ms, at) in self._steps.items() if used == threads and now <= at + FRESH_S
        ]
        if not points:
            return ROW_COST
        tokens = sum(n for n, _ in points) / len(points)
        ms = sum(t for _, t in points) / len(points)
        spread = sum((n - tokens) ** 2 for n, _ in points)
        usual = ROW_COST * ms / (1 + ROW_COST * (tokens - 1))
        slope = (sum((n - tokens) * (t - ms) for n, t in points) + DOUBT * usual) / (spread + DOUBT)
        one = ms - slope * (tokens - 1)
        return min(MOST, max(LEAST, slope / one)) if one > 0 else MOST


def price(row_cost: float, rows: int) -> float:
    """Return what one more token for each of the rows costs, as a share of the step without."""
    return row_cost * rows / (1 + row_cost * (rows - 1))
