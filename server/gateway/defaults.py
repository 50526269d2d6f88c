"""Choice of the loaded model that a request means without naming it in full: the one that was loaded first.

A script that names none goes on with the same model when another is loaded beside it. When its model is unloaded and
several remain, there is no default until one alone is left: the script is refused, not moved to another model.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import product
from typing import TypeAlias

Way: TypeAlias = tuple[str, str, str]
"""Model, engine and precision."""
Asked: TypeAlias = tuple[str | None, str | None, str | None]
"""The same as a request has them: None where it leaves one out."""


class Defaults:
    def __init__(self) -> None:
        self._ways: set[Way] = set()
        self._means: dict[Asked, Way] = {}
        """What a request means, by what it names."""

    def look(self, loaded: Collection[Way]) -> None:
        """Take in what is loaded now, kept models that are being loaded again among it."""
        ways = set(loaded)
        if ways == self._ways:
            return
        self._ways = ways
        means: dict[Asked, Way] = {}
        for asked in {asked for way in ways for asked in _ways_to_ask(way)}:
            fitting = [way for way in ways if agree(asked, way)]
            known = self._means.get(asked)
            if known and known in ways:
                means[asked] = known
            elif len(fitting) == 1:
                means[asked] = fitting[0]
        self._means = means

    def of(self, asked: Asked) -> Way | None:
        """Return what a request means, or None where nothing of it is loaded or it could mean several."""
        return self._means.get(asked)


def _ways_to_ask(way: Way) -> list[Asked]:
    return list(product((way[0], None), (way[1], None), (way[2], None)))


def agree(wanted: tuple[str | None, ...], own: tuple[str, ...]) -> bool:
    """Return whether a model, engine and precision are what was asked for; None asks for any."""
    return all(one is None or one == other for one, other in zip(wanted, own, strict=True))


def in_words(asked: Asked) -> str:
    """Return what a request names, for people."""
    model, *others = asked
    more = [f"{field} {value}" for field, value in zip(("engine", "precision"), others, strict=True) if value]
    if not more:
        return model or "an unnamed model"
    return f"{model or 'a model'} with {' and '.join(more)}"
