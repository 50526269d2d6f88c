"""How often streams get pieces: those that want them equally often get them together."""

from __future__ import annotations

from collections.abc import Set as AbstractSet


class Intervals:
    """When streams were due last, by the interval that they asked for, of which there are at most 1,001."""

    def __init__(self) -> None:
        self._due_at: dict[int, float] = {}

    def due(self, intervals_ms: AbstractSet[int], now: float) -> AbstractSet[int]:
        """Return those of the intervals whose streams are due after the step that ended `now`."""
        due = {ms for ms in intervals_ms if now >= self._due_at.get(ms, 0.0) + ms / 1000}
        self._due_at.update(dict.fromkeys(due, now))
        return due
