"""How far a long job is: a line that is drawn again on a terminal, now and then a line of its own elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from client.amounts import bar, counted, duration
from client.corpus.journal import Done, Position

DRAW_S, LINE_S = 0.5, 10.0
"""Seconds between two drawings on a terminal, and between two lines elsewhere."""
WIDTH = 80
"""Columns of a terminal that does not say how many it has."""


def say(text: str, end: str = "\n") -> None:
    """Print to stderr. A terminal or a reader that is gone ends no work."""
    with contextlib.suppress(OSError):
        print(text, end=end, file=sys.stderr, flush=True)


def width() -> int:
    """Return the number of columns of the terminal that stderr is."""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(sys.stderr.fileno()).columns or WIDTH
    return WIDTH


class Bar:
    """Shows texts done, tokens a second and the time left, by a thread: answers come in bursts, seconds apart."""

    def __init__(self, texts: int, characters: int, position: Position) -> None:
        """Start the clock, at what an earlier run has done of all `texts` with so many `characters`."""
        self._texts = texts
        self._characters = max(1, characters)
        self._began = self._last = time.monotonic()
        self._done = position.texts
        self._read = self._skipped = position.characters
        self.tokens = 0
        """Those of this run."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def add(self, done: Done) -> None:
        """Count one more passage."""
        self._done += done.whole
        self._read += done.characters
        self.tokens += done.tokens
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def close(self) -> None:
        """End the thread; its line on a terminal goes with it."""
        self._over.set()
        self._thread.join()

    def told(self) -> str:
        """Return how far it is, in words."""
        share = f"{min(1.0, self._read / self._characters):.0%}, {self._done:,} of {counted(self._texts, 'text')}"
        took = self._last - self._began
        if not self.tokens or not took or self._read == self._skipped:
            return share
        left = (self._characters - self._read) * took / (self._read - self._skipped)
        return f"{share}, {self.tokens / took:,.0f} tokens/s, {duration(left)} left"

    def drawn(self, columns: int) -> str:
        """Return the line for a terminal: one that went on in the next line could not be drawn over."""
        return f"{bar(self._read, self._characters)} {self.told()}"[: columns - 1]

    def note(self, text: str) -> None:
        """Print a line of its own, below which the bar is drawn again."""
        say(f"\r\x1b[K{text}" if sys.stderr.isatty() else text)

    def _run(self) -> None:
        on_terminal = sys.stderr.isatty()
        while not self._over.wait(DRAW_S if on_terminal else LINE_S):
            if on_terminal:
                say(f"\r\x1b[K{self.drawn(width())}", end="")
            else:
                say(self.told())
        if on_terminal:
            say("\r\x1b[K", end="")
