"""Searching a page: what is sought, where it is, and which of its places comes next. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from operator import itemgetter

import regex

MOST = 10_000
"""Most places that are shown; a page of one letter has as many of it as it is long."""
LONGEST = 1000
"""Most code points of what is sought."""
START = itemgetter(0)


@dataclass(slots=True)
class Find:
    open: bool = False
    replacing: bool = False
    text: str = ""
    put: str = ""
    """What it is replaced by."""
    case: bool = False
    """Capitals are told from small letters."""
    entered: bool = False
    """Its field gets the keyboard in the next frame."""
    _known: tuple[str, str, bool] = ("", "", False)
    _places: list[tuple[int, int]] = field(default_factory=list)

    def places(self, text: str) -> list[tuple[int, int]]:
        """Return start and end of each place of a text; nothing is searched twice."""
        if not self.open or not self.text:
            return []
        if self._known[1:] != (self.text, self.case) or self._known[0] is not text:
            self._known, self._places = (text, self.text, self.case), search(text, self.text, self.case)
        return self._places


def search(text: str, sought: str, case: bool, most: float = MOST) -> list[tuple[int, int]]:
    """Return the places of what is sought, which do not overlap; not more than `most`."""
    pattern = regex.compile(regex.escape(sought[:LONGEST]), 0 if case else regex.IGNORECASE)
    found = list[tuple[int, int]]()
    for match in pattern.finditer(text):
        found.append(match.span())
        if len(found) == most:
            break
    return found


def following(places: list[tuple[int, int]], selected: tuple[int, int]) -> tuple[int, int] | None:
    """Return the place after what is selected; after the last the first."""
    if not places:
        return None
    start, end = min(selected), max(selected)
    index = bisect_left(places, start, key=START)
    if index < len(places) and places[index] == (start, end):
        index += 1
    return places[index % len(places)]


def preceding(places: list[tuple[int, int]], selected: tuple[int, int]) -> tuple[int, int] | None:
    """Return the place before what is selected; before the first the last."""
    return places[bisect_left(places, min(selected), key=START) - 1] if places else None


def number(places: list[tuple[int, int]], selected: tuple[int, int]) -> int:
    """Return which of the places is selected, from 1; 0: none."""
    chosen = min(selected), max(selected)
    index = bisect_right(places, chosen[0], key=START)
    return index if index and places[index - 1] == chosen else 0


def replaced(text: str, find: Find) -> list[tuple[int, int, str]]:
    """Return the edits that replace every place, those that are not shown too; the last first, so that those before
    keep their offsets.
    """
    places = search(text, find.text, find.case, math.inf)
    return [(start, end, find.put) for start, end in reversed(places) if text[start:end] != find.put]
