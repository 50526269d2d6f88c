"""The page: its text, the marks of what was generated, undo over edits and generations, and the takes of each place.

Positions are UTF-8 byte offsets, as the text field counts. Nothing here knows a window, a server or a clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_UNDO, MAX_UNDO_BYTES = 1000, 64 << 20
MAX_PLACES, MAX_PLACES_BYTES = 200, 64 << 20
MAX_TAKES = 50
MERGE_S = 1.0
"""Seconds within which typing is undone together."""


@dataclass(frozen=True)
class Mark:
    """Bytes start to end were generated."""

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
    removed: bytes
    inserted: bytes
    marks: list[Mark]
    """The marks before the edit."""
    cursor: int
    kind: str
    at: float


class Document:
    """One text. Every change goes through `replace`, so that it can be undone."""

    def __init__(self, text: str = "") -> None:
        self.data = clean(text).encode()
        self.marks: list[Mark] = []
        self.places: dict[bytes, Place] = {}
        """Places by the text before them."""
        self.cursor = len(self.data)
        self.version = 0
        """Changes with every change of the text."""
        self._text: tuple[int, str] = (-1, "")
        self._undo: deque[_Edit] = deque()
        self._redo: list[_Edit] = []
        self._kept = 0
        """Bytes of the edits that can be undone."""
        self._places_kept = 0
        """Bytes of the places' keys."""

    @property
    def text(self) -> str:
        if self._text[0] != self.version:
            self._text = self.version, self.data.decode("utf-8", "replace")
        return self._text[1]

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    def typed(self, text: str, cursor: int, now: float) -> None:
        """Take over the content of the text field after the user's edit."""
        data = text.encode("utf-8", "replace")
        start, end = _common(self.data, data)
        self._change(start, len(self.data) - end, data[start : len(data) - end], "typed", now)
        self.cursor = cursor

    def replace(self, start: int, end: int, text: str, kind: str, now: float = 0.0) -> int:
        """Replace bytes start to end by text; return where it ends. Changes of one `kind` at the same place merge."""
        data = clean(text).encode()
        self._change(start, end, data, kind, now)
        self.cursor = start + len(data)
        return self.cursor

    def mark(self, start: int, end: int) -> None:
        """Mark bytes start to end as generated; marks that overlap them are replaced."""
        kept = [mark for mark in self.marks if mark.end <= start or mark.start >= end]
        self.marks = sorted([*kept, Mark(start, end)], key=lambda mark: mark.start) if end > start else kept

    def mark_at(self, position: int) -> Mark | None:
        """Return the mark that a position is in, or at the end of."""
        return next((mark for mark in reversed(self.marks) if mark.start <= position <= mark.end), None)

    def place(self, start: int) -> Place:
        """Return the place after the first `start` bytes, made where it is new; the oldest are forgotten."""
        key = self.data[:start]
        place = self.places.pop(key, None)
        if place is None:
            place = Place()
            self._places_kept += len(key)
        self.places[key] = place
        while len(self.places) > 1 and (len(self.places) > MAX_PLACES or self._places_kept > MAX_PLACES_BYTES):
            oldest = next(iter(self.places))
            del self.places[oldest]
            self._places_kept -= len(oldest)
        return place

    def known_place(self, start: int) -> Place | None:
        return self.places.get(self.data[:start])

    def undo(self) -> None:
        if self._undo:
            edit = self._undo.pop()
            self._kept -= len(edit.removed) + len(edit.inserted)
            marks, self.marks = self.marks, edit.marks
            self._put(edit.start, edit.start + len(edit.inserted), edit.removed)
            self._redo.append(_Edit(edit.start, edit.removed, edit.inserted, marks, self.cursor, edit.kind, 0.0))
            self.cursor = edit.cursor

    def redo(self) -> None:
        if self._redo:
            edit = self._redo.pop()
            self._remember(_Edit(edit.start, edit.removed, edit.inserted, self.marks, self.cursor, edit.kind, 0.0))
            self._put(edit.start, edit.start + len(edit.removed), edit.inserted)
            self.marks, self.cursor = edit.marks, edit.start + len(edit.inserted)

    def _change(self, start: int, end: int, inserted: bytes, kind: str, now: float) -> None:
        removed = self.data[start:end]
        if removed == inserted:
            return
        last = self._undo[-1] if self._undo else None
        grows = last is not None and last.kind == kind and not removed and start == last.start + len(last.inserted)
        if last is not None and grows and (kind != "typed" or (now < last.at + MERGE_S and not inserted.isspace())):
            last.inserted += inserted
            last.at = now
            self._kept += len(inserted)
        else:
            self._remember(_Edit(start, removed, inserted, self.marks, self.cursor, kind, now))
        self._redo.clear()
        self.marks = _shifted(self.marks, start, end, len(inserted))
        self._put(start, end, inserted)

    def _put(self, start: int, end: int, inserted: bytes) -> None:
        self.data = self.data[:start] + inserted + self.data[end:]
        self.version += 1

    def _remember(self, edit: _Edit) -> None:
        self._undo.append(edit)
        self._kept += len(edit.removed) + len(edit.inserted)
        while len(self._undo) > 1 and (len(self._undo) > MAX_UNDO or self._kept > MAX_UNDO_BYTES):
            oldest = self._undo.popleft()
            self._kept -= len(oldest.removed) + len(oldest.inserted)


def clean(text: str) -> str:
    """Return the text as a field can hold it: without NUL, which would end it, surrogates and control characters."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").encode("utf-8", "replace").decode("utf-8")
    if text.isprintable():
        return text
    return "".join(c for c in text if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160))


def _common(old: bytes, new: bytes) -> tuple[int, int]:
    """Return how many bytes at the start and at the end are the same, in whole characters, without overlap."""
    least = min(len(old), len(new))
    start = _longest(least, lambda n: old[:n] == new[:n])
    while _inside(old, start) or _inside(new, start):
        start -= 1
    end = _longest(least - start, lambda n: n == 0 or old[-n:] == new[-n:])
    while _inside(old, len(old) - end) or _inside(new, len(new) - end):
        end -= 1
    return start, end


def _inside(data: bytes, position: int) -> bool:
    """Return True within a character: its bytes after the first are 10xxxxxx."""
    return position < len(data) and data[position] & 0xC0 == 0x80


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


def _shifted(marks: list[Mark], start: int, end: int, length: int) -> list[Mark]:
    """Return the marks after bytes start to end were replaced by `length` others; typing inside a mark does not split
    it.
    """

    def moved(position: int, *, ends: bool) -> int:
        if position < start or (position == start and (ends or start < end)):
            return position
        if position >= end:
            return position + length - (end - start)
        return start if ends else start + length

    found = [Mark(moved(mark.start, ends=False), moved(mark.end, ends=True)) for mark in marks]
    return [mark for mark in found if mark.end > mark.start]
