"""Models that stay loaded: how many replicas each has, and when one whose worker died is loaded again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from server.catalogue.catalogue import Model
from server.gateway.defaults import Asked, Way, agree

AGAIN_S, AGAIN_MAX_S = 1.0, 60.0
"""Time until a kept model whose worker died is loaded again. It doubles each time, up to the second; a worker that has
stayed up for the second sets it back."""


@dataclass(eq=False)
class Kept:
    """Model that stays loaded: it was preloaded, or loaded with a number of replicas."""

    model: Model
    engine: str
    precision: str
    replicas: int = 1
    compiled: bool = False
    cache: str = ""
    """What its KV cache is made of; empty: the default."""
    firm: int = 0
    """Number of replicas that were ready once: they stay also when a load that asks for more is cancelled or fails."""
    due: float | None = None
    """Time when it is loaded again (monotonic), if it is to be."""
    delay_s: float = AGAIN_S
    restarts: int = 0

    @property
    def way(self) -> Way:
        return self.model.name, self.engine, self.precision

    @property
    def name(self) -> str:
        return "/".join(self.way)

    def postpone(self) -> float:
        """Have it loaded again after a while, which doubles each time; return the seconds."""
        seconds = self.delay_s
        self.due = time.monotonic() + seconds
        self.delay_s = min(AGAIN_MAX_S, 2 * seconds)
        return seconds


class KeptModels:
    """All of them, by model, engine and precision. Used by the gateway's thread only."""

    def __init__(self) -> None:
        self._kept: list[Kept] = []

    def __iter__(self) -> Iterator[Kept]:
        return iter(self._kept)

    def find(self, way: Way) -> Kept | None:
        return next((kept for kept in self._kept if kept.way == way), None)

    def put(self, kept: Kept) -> None:
        """Keep a model, in place of what was kept of it before."""
        self._kept = [other for other in self._kept if other.way != kept.way] + [kept]

    def matching(self, which: Asked) -> list[Kept]:
        """Return those that a request may mean by what it names."""
        return [kept for kept in self._kept if agree(which, kept.way)]

    def drop(self, which: Asked) -> None:
        self._kept = [kept for kept in self._kept if not agree(which, kept.way)]

    def take_back(self, kept: Kept, there: int) -> None:
        """Reduce one to what was ready once and what still loads (`there` in all): a load of more was cancelled or
        failed.
        """
        kept.replicas = max(kept.firm, there)
        self._kept = [one for one in self._kept if one.replicas]

    def clear(self) -> None:
        self._kept.clear()
