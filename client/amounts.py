"""Amounts as people read them: how many, how long, how far."""

from __future__ import annotations

BAR = 24
"""Columns of a bar."""


def counted(number: int, what: str) -> str:
    """Return a number with its noun: 1 text, 2 texts."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def bar(done: int, total: int) -> str:
    """Return a bar that is filled as far as `done` of `total` goes."""
    filled = BAR * min(done, total) // max(1, total)
    return f"[{'#' * filled}{'.' * (BAR - filled)}]"
