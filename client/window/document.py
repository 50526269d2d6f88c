"""The page: its text, the caret, the marks of what was generated, undo over edits and generations, and the takes of
each place.

Offsets are characters (code points) of the text, whose lines end in a line feed. Nothing here knows a window, a server
or a clock.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_UNDO, MAX_UNDO_CHARACTERS = 1000, 16 << 20
MAX_PLACES, MAX_PLACES_CHARACTERS = 200, 16 << 20
MAX_TAKES = 50
MERGE_S = 1.0
"""Seconds within which typing is undone together."""
HIDDEN = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Control characters, which a page does not show."""


@dataclass(frozen=True)
class Mark:
    """Characters start to end were generated."""

    start: int
    end: int


@dataclass
class Take:
    """One continuation of a place."""

    text: str
    entry: int | None = None
    """Its number in the history; None until it is complete."""


@dataclass
class Place:
    """The continuations written after the same text, and which of them the page shows."""

    takes: list[Take] = field(default_factory=list)
    shown: int = 0

    def show_last(self) -> None:
        """The newest take is shown, and the oldest are forgotten."""
        del self.takes[:-MAX_TAKES]
        self.shown = max(0, len(self.takes) - 1)


@dataclass
class _Edit:
    start: int
    removed: str
    inserted: str
    marks: list[Mark]
    """The marks before the edit."""
    cursor: int
    anchor: int
    kind: str
    at: float

    @property
    def size(self) -> int:
        return len(self.removed) + len(self.inserted)


class Document:
    """One text. Every change goes through `edit`, so that it can be undone."""

    def __init__(self, text: str = "") -> None:
        self.text = clean(text)
        self.marks: list[Mark] = []
        self.places: dict[str, Place] = {}
        """Places by the text before them."""
        self.cursor = len(self.text)
        self.anchor = self.cursor
        """The other end of the selection; where the cursor is, nothing is selected."""
        self.sticky: dict[str, int] = {}
        """Offsets by name that every edit before them shifts; what is inserted exactly there comes after them."""
        self.version = 0
        """Changes with every change of the text."""
        self._undo: deque[_Edit] = deque()
        self._redo: list[_Edit] = []
        self._kept = 0
        """Characters of the edits that can be undone."""
        self._places_kept = 0
        """Characters of the places' keys."""

    @property
    def selection(self) -> tuple[int, int]:
        """Where the selection begins and ends."""
        return min(self.cursor, self.anchor), max(self.cursor, self.anchor)

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    def select(self, cursor: int, anchor: int | None = None) -> None:
        """Move the cursor, and select from `anchor`; without it, nothing."""
        self.cursor = max(0, min(cursor, len(self.text)))
        self.anchor = self.cursor if anchor is None else max(0, min(anchor, len(self.text)))

    def before(self, end: int, most: int) -> str:
        """Return what stands before an offset: all of it, or its end of at most this many bytes of UTF-8."""
        data = self.text[max(0, end - most) : end].encode()
        return data[-most:].decode("utf-8", "ignore")

    def typed(self, text: str, cursor: int, now: float) -> None:
        """Take over the content of a text field after the user's edit."""
        text = clean(text)
        start, end = _common(self.text, text)
        self.edit(start, len(self.text) - end, text[start : len(text) - end], "typed", now)
        self.select(cursor)

    def edit(self, start: int, end: int, text: str, kind: str, now: float = 0.0) -> int:
        """Replace the characters from start to end by text; return where it ends. Marks, cursor, selection and sticky
        offsets after it are shifted. Changes of one `kind` that go on where the last one ended are undone with it.
        """
        inserted, removed = clean(text), self.text[start:end]
        if removed != inserted:
            self._remember(start, removed, inserted, kind, now)
            self._redo.clear()
            self.marks = _shifted(self.marks, start, end, len(inserted))
            self._put(start, end, inserted)
        return start + len(inserted)

    def mark(self, start: int, end: int) -> None:
        """Mark the characters from start to end as generated; marks that overlap them are replaced."""
        kept = [mark for mark in self.marks if mark.end <= start or mark.start >= end]
        self.marks = sorted([*kept, Mark(start, end)], key=lambda mark: mark.start) if end > start else kept

    def mark_at(self, position: int) -> Mark | None:
        """Return the mark that a position is in, or at the end of."""
        return next((mark for mark in reversed(self.marks) if mark.start <= position <= mark.end), None)

    def place(self, start: int) -> Place:
        """Return the place after the first `start` characters, made where it is new; the oldest are forgotten."""
        key = self.text[:start]
        place = self.places.pop(key, None)
        if place is None:
            place = Place()
            self._places_kept += len(key)
        self.places[key] = place
        while len(self.places) > 1 and (len(self.places) > MAX_PLACES or self._places_kept > MAX_PLACES_CHARACTERS):
            oldest = next(iter(self.places))
            del self.places[oldest]
            self._places_kept -= len(oldest)
        return place

    def known_place(self, start: int) -> Place | None:
        return self.places.get(self.text[:start])

    def undo(self) -> None:
        if self._undo:
            edit = self._undo.pop()
            self._kept -= edit.size
            self._redo.append(self._again(edit))
            self._put(edit.start, edit.start + len(edit.inserted), edit.removed)
            self.marks = edit.marks
            self.select(edit.cursor, edit.anchor)

    def redo(self) -> None:
        if self._redo:
            edit = self._redo.pop()
            self._keep(self._again(edit))
            self._put(edit.start, edit.start + len(edit.removed), edit.inserted)
            self.marks = edit.marks
            self.select(edit.start + len(edit.inserted))

    def _again(self, edit: _Edit) -> _Edit:
        """Return an edit for the way back, which restores what is there now and merges with nothing."""
        return _Edit(edit.start, edit.removed, edit.inserted, self.marks, self.cursor, self.anchor, edit.kind, -MERGE_S)

    def _put(self, start: int, end: int, inserted: str) -> None:
        self.text = self.text[:start] + inserted + self.text[end:]
        self.version += 1
        self.cursor, self.anchor = (
            _moved(position, start, end, len(inserted), after=True) for position in (self.cursor, self.anchor)
        )
        self.sticky = {
            name: _moved(position, start, end, len(inserted), after=False) for name, position in self.sticky.items()
        }

    def _remember(self, start: int, removed: str, inserted: str, kind: str, now: float) -> None:
        """Keep an edit for undo, as a part of the last one where it goes on with it."""
        last = self._undo[-1] if self._undo else None
        if last is None or not _goes_on(last, start, removed, inserted, kind, now):
            self._keep(_Edit(start, removed, inserted, self.marks, self.cursor, self.anchor, kind, now))
            return
        if start < last.start:
            last.start, last.removed = start, removed + last.removed
        else:
            last.inserted, last.removed = last.inserted + inserted, last.removed + removed
        last.at = now
        self._kept += len(removed) + len(inserted)

    def _keep(self, edit: _Edit) -> None:
        self._undo.append(edit)
        self._kept += edit.size
        while len(self._undo) > 1 and (len(self._undo) > MAX_UNDO or self._kept > MAX_UNDO_CHARACTERS):
            self._kept -= self._undo.popleft().size


def clean(text: str) -> str:
    """Return the text as a page holds it: lines end in a line feed; no surrogates, no other control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return HIDDEN.sub("", text)


def _goes_on(last: _Edit, start: int, removed: str, inserted: str, kind: str, now: float) -> bool:
    """Return True if a change is one with the last: text that grows at its end, or that is deleted letter by letter."""
    if last.kind != kind:
        return False
    if kind == "deleted":
        adjacent = start in {last.start, last.start - len(removed)}
        return adjacent and not inserted and not last.inserted and now < last.at + MERGE_S
    if removed or start != last.start + len(last.inserted):
        return False
    return kind != "typed" or (now < last.at + MERGE_S and not inserted.isspace())


def _common(old: str, new: str) -> tuple[int, int]:
    """Return how many characters at the start and at the end are the same, without overlap."""
    least = min(len(old), len(new))
    start = _longest(least, lambda n: old[:n] == new[:n])
    return start, _longest(least - start, lambda n: n == 0 or old[-n:] == new[-n:])


def _longest(most: int, same: Callable[[int], bool]) -> int:
    """Return the largest n up to `most` for which same(n), by bisection: comparing slices is as fast as memory."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if same(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _moved(position: int, start: int, end: int, length: int, *, after: bool) -> int:
    """Return a position after the characters start to end were replaced by `length` others; `after`: one that is where
    text is inserted, or within what is replaced, comes after the new text; else before it.
    """
    if position < start or (position == start and (start < end or not after)):
        return position
    if position >= end:
        return position + length - (end - start)
    return start + length if after else start


def _shifted(marks: list[Mark], start: int, end: int, length: int) -> list[Mark]:
    """Return the marks after an edit; typing inside a mark does not split it, typing at its ends is not in it."""

    def moved(position: int, *, ends: bool) -> int:
        return _moved(position, start, end, length, after=not ends)

    found = [Mark(moved(mark.start, ends=False), moved(mark.end, ends=True)) for mark in marks]
    return [mark for mark in found if mark.end > mark.start]
