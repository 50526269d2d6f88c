"""How far a long job is: a line that is drawn again on a terminal, now and then a line of its own elsewhere."""

from __future__ import annotations

import sys
import time

from client.corpus.journal import Done, Position

BAR = 24
DRAW_S, LINE_S = 0.1, 10.0
"""Seconds between two drawings on a terminal, and between two lines elsewhere."""


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Bar:
    """Shows texts done, tokens a second, time left. A context manager: its line on a terminal goes with it."""

    def __init__(self, texts: int, characters: int, position: Position) -> None:
        """Start the clock, at what an earlier run has done of all `texts` with so many `characters`."""
        self._texts = texts
        self._characters = max(1, characters)
        self._began = time.monotonic()
        self._drawn = self._began if not sys.stderr.isatty() else 0.0
        self._done = position.texts
        self._read = self._skipped = position.characters
        self.tokens = 0
        """Those of this run."""

    def add(self, done: Done) -> None:
        """Count one more passage, and show how far it all is now."""
        self._done += done.whole
        self._read += done.characters
        self.tokens += done.tokens
        now = time.monotonic()
        if now - self._drawn < (DRAW_S if sys.stderr.isatty() else LINE_S):
            return
        self._drawn = now
        share = min(1.0, self._read / self._characters)
        took = max(0.001, now - self._began)
        speed = (self._read - self._skipped) / took
        left = duration((self._characters - self._read) / speed) if speed else "unknown time"
        told = f"{self._done:,} of {self._texts:,} texts, {self.tokens / took:,.0f} tokens/s, {left} left"
        if sys.stderr.isatty():
            filled = int(BAR * share)
            print(f"\r\x1b[K[{'#' * filled}{'.' * (BAR - filled)}] {told}", end="", file=sys.stderr, flush=True)
        else:
            say(f"{share:.0%}, {told}")

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def close(self) -> None:
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
