"""How many of an engine's threads take the next step, where other processes want the cores, too.

Threads that share a core with other work are worse than fewer threads: a step waits for the slowest, and where Linux
gives each session its share of the machine, two threads of one session may find themselves on the same core, while
another session has the other core for itself. How much is lost is seen without trying: threads never sleep in a step,
so what the clock on the wall says more than their own clocks is a core that they did not get. Whether fewer are faster
is seen by trying, since that depends on the model, the memory and the other work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

WINDOW_S = 0.04
"""Time over which losses are averaged, and the least for a trial and for what it is compared with: ten slices."""
MEMORY_S = 0.16
"""Time over which the times of steps are averaged, and the most for a trial whose outcome is not clear before."""
CLEAR = 0.15
"""Difference at which it is."""
EVEN = 0.03
"""Difference which is none."""
SLICE_S = 0.004
"""Slice of the system's scheduler. A trial that has cost more, and is clearly too slow, is over."""
FIRST_S, LAST_S = 0.1, 2.0
"""The distance of trials, doubled after each that failed."""
COST = 25
"""What a trial of fewer threads has cost is a small part of the time until the next: a step may be a long prefill."""
WORTH_TRYING = 0.5
"""Of n threads fewer are tried where so much / n of a core is lost.

n threads that wait for one of them for a share w of their time do 1 - w of what they could, one less (n - 1) / n: these
are equal at w = 1 / n, and earlier where a thread more brings less than its share, since memory has its limits.
"""
PLAIN = 0.7
"""Share of a core lost, two threads that share one, where a short look is enough to compare a trial with."""
LATE = 0.2
"""A thread that loses so much of a step is one of those that are too many."""
NOTHING = 0.01
"""Share of a core lost that needs no watching."""
KINDS = 16
"""Kinds of steps whose times are remembered."""


@dataclass
class _Times:
    """The mean time of steps of each kind, of late."""

    sums: dict[Hashable, tuple[float, float]] = field(default_factory=dict)
    """Kind -> seconds and number of steps, older ones counting less."""

    def add(self, kind: Hashable, seconds: float) -> None:
        if len(self.sums) == KINDS and kind not in self.sums:
            self.sums.clear()
        total, steps = self.sums.get(kind, (0.0, 0.0))
        older = MEMORY_S / (MEMORY_S + seconds)
        self.sums[kind] = (total * older + seconds, steps * older + 1)

    def mean(self, kind: Hashable) -> float:
        """Return 0 for a kind that is not known."""
        total, steps = self.sums.get(kind, (0.0, 1.0))
        return total / steps


@dataclass
class _Trial:
    """Steps with another number of threads; `expected` is what those of a known kind took with the usual number."""

    usual: int
    times: _Times = field(default_factory=_Times)
    seconds: float = 0.0
    lost: float = 0.0
    compared: float = 0.0
    expected: float = 0.0


class Crew:
    """The rule. Steps are told to `took`, after which `used` says how many threads take the next."""

    def __init__(self, threads: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self.threads = self.used = threads
        self.watching = False
        """False: a step in which nothing was lost need not be told."""
        self._clock = clock
        self._times = _Times()
        self._seconds = self._lost = 0.0
        self._bad_seconds, self._late = 0.0, [0.0] * threads
        """Of steps since it is worth trying: their sum, and what each thread lost of them."""
        self._trial: _Trial | None = None
        self._fewer_at = self._more_at = self._rose_at = -LAST_S
        self._fewer_after = self._more_after = FIRST_S

    def took(self, kind: Hashable, seconds: float, waits: Sequence[float] = ()) -> None:
        """Note a step. Steps of one kind take the same time; `waits` is how long each thread waited for a core."""
        lost = sum(waits)
        if self._trial is not None:
            self._judge(self._trial, kind, seconds, lost)
            return
        older = WINDOW_S / (WINDOW_S + seconds)
        self._seconds, self._lost = self._seconds * older + seconds, self._lost * older + lost
        if self.used > 1 and self._lost * self.used > self._seconds * WORTH_TRYING:
            self._lose(kind, seconds, waits)
            return
        self._bad_seconds = 0.0
        self.watching = self.used < self.threads or self._lost > self._seconds * NOTHING
        self._times.add(kind, seconds)
        if self.used < self.threads and self._clock() >= self._more_at:
            self._try(self.used + 1)

    def _lose(self, kind: Hashable, seconds: float, waits: Sequence[float]) -> None:
        """Note a step where it is worth trying fewer threads, and try that once there is something to compare with."""
        self.watching = True
        if not self._bad_seconds:
            self._times, self._late = _Times(), [0.0] * self.threads
        self._times.add(kind, seconds)
        self._bad_seconds += seconds
        for thread, wait in enumerate(waits):
            self._late[thread] += wait
        now = self._clock()
        enough = WINDOW_S if self._lost > self._seconds * PLAIN else MEMORY_S
        if self._bad_seconds < enough or now < self._fewer_at:
            return
        if now > self._fewer_at + LAST_S:
            self._fewer_after = FIRST_S
        late = sum(late > self._bad_seconds * LATE for late in self._late)
        self._try(max(1, self.used - max(1, late)))

    def _try(self, threads: int) -> None:
        self._trial = _Trial(self.used)
        self.used = threads

    def _judge(self, trial: _Trial, kind: Hashable, seconds: float, lost: float) -> None:
        """Note a step of a trial, and end it where it can be seen how it ends."""
        trial.times.add(kind, seconds)
        trial.seconds += seconds
        trial.lost += lost
        if known := self._times.mean(kind):
            trial.compared += seconds
            trial.expected += known
        more = self.used > trial.usual
        if more and trial.lost * self.used < trial.seconds * WORTH_TRYING:  # no need to compare: nobody is in the way
            self._rise(trial.times)
            return
        excess, expected = trial.compared - trial.expected, trial.expected
        if excess > SLICE_S and excess > expected * CLEAR:
            self._give_up(trial)
        elif trial.seconds >= (WINDOW_S if abs(excess) > expected * CLEAR else MEMORY_S):
            if excess > expected * (-EVEN if more else EVEN) or not expected:
                self._give_up(trial)
            elif more:
                self._rise(trial.times)
            else:
                self._fall(trial.times)

    def _rise(self, times: _Times) -> None:
        self._settle(times)
        self._rose_at = self._clock()

    def _fall(self, times: _Times) -> None:
        """Go on with fewer threads; a rise that did not last counts as a trial that failed."""
        now = self._clock()
        self._settle(times)
        self._more_after = min(LAST_S, 2 * self._more_after) if now < self._rose_at + LAST_S else FIRST_S
        self._more_at = now + self._more_after

    def _settle(self, times: _Times) -> None:
        self._times, self._trial = times, None
        self._seconds = self._lost = self._bad_seconds = 0.0

    def _give_up(self, trial: _Trial) -> None:
        """Go back to the usual number, and wait twice as long before the next trial of this kind."""
        now = self._clock()
        if self.used > trial.usual:
            self._more_after = min(LAST_S, 2 * self._more_after)
            self._more_at = now + self._more_after
        else:
            self._fewer_after = min(LAST_S, 2 * self._fewer_after)
            self._fewer_at = now + max(self._fewer_after, COST * (trial.compared - trial.expected))
            self._seconds = self._lost = self._bad_seconds = 0.0
        self.used, self._trial = trial.usual, None
