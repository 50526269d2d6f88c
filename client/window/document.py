"""The page: its text, the caret, the marks of what was generated, and undo over edits and generations.

Offsets are characters (code points) of the text, whose lines end in a line feed. Nothing here knows a window, a server
or a clock.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from client.window.editor.layout import difference
from client.window.marks import Mark, Passage, Span, Written

MAX_UNDO, MAX_UNDO_CHARACTERS = 1000, 16 << 20
MARK_CHARACTERS = 64
"""What a mark that is kept with an edit counts."""
MERGE_S = 1.0
"""Seconds within which typing is undone together."""
HIDDEN = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")
"""Control characters, which a page does not show."""


class Sheet(NamedTuple):
    """A text that a page can show."""

    text: str
    written: Written
    cursor: int


@dataclass
class _Edit:
    start: int
    removed: str
    inserted: str
    written: Written
    """The marks before the edit."""
    cursor: int
    anchor: int
    kind: str
    at: float

    @property
    def size(self) -> int:
        marks = len(self.written.marks) + len(self.written.spans)
        return len(self.removed) + len(self.inserted) + MARK_CHARACTERS * marks


class Document:
    """One text. Every change goes through `edit`, so that it can be undone."""

    def __init__(self, text: str = "") -> None:
        self.text = clean(text)
        self.written = Written()
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

    def edit(self, start: int, end: int, text: str, kind: str, now: float = 0.0) -> int:
        """Replace the characters from start to end by text; return where it ends. Marks, cursor, selection and sticky
        offsets after it are shifted. Typing that goes on where it ended, and so a generation, are undone together; each
        has a `kind`, a generation's own begins with "generated".
        """
        inserted, removed = clean(text), self.text[start:end]
        if removed != inserted:
            self._remember(start, removed, inserted, kind, now)
            self._redo.clear()
            self.written = self.written.edited(start, end, inserted)
            self._put(start, end, inserted)
        return start + len(inserted)

    def edit_all(self, edits: Sequence[tuple[int, int, str]], kind: str, now: float = 0.0) -> None:
        """Make several edits, (start, end, text), which do not overlap, the last place first; undone together."""
        if not edits:
            return
        edits = [(start, end, clean(text)) for start, end, text in edits]
        first, last = edits[-1][0], edits[0][1]
        parts, at = list[str](), first
        places, lengths = list[int](), list[int]()
        for start, end, text in reversed(edits):
            parts += self.text[at:start], text
            places.append(end)
            lengths.append((lengths[-1] if lengths else 0) + len(text) - (end - start))
            at = end

        def moved(position: int) -> int:
            index = bisect_right(places, position)
            return position + (lengths[index - 1] if index else 0)

        inserted = "".join(parts)
        self._remember(first, self.text[first:last], inserted, f"{kind} {self.version}", now)
        self._redo.clear()
        written = self.written.edited_all(edits)
        caret, sticky = moved(self.cursor), {name: moved(position) for name, position in self.sticky.items()}
        self._put(first, last, inserted)
        self.written = written
        self.sticky = sticky
        self.select(caret)

    @property
    def marks(self) -> tuple[Mark, ...]:
        """What was generated."""
        return self.written.marks

    @property
    def spans(self) -> tuple[Span, ...]:
        """The takes that the text shows."""
        return self.written.spans

    def mark(self, start: int, end: int, node: int = 0) -> None:
        """Mark the characters from start to end as generated, as a part of this take."""
        self.written = self.written.added(start, end, node)

    def show(self, start: int, end: int, passage: Passage, node: int, kind: str) -> int:
        """Replace the characters from start to end by a take; return where it ends."""
        end = self.edit(start, end, passage.text, kind)
        self.written = self.written.shown(start, passage, node)
        return end

    def mark_at(self, position: int) -> Span | None:
        """Return the take that a position is in, or at the end of; where there is none, what else was generated."""
        return self.written.at(position)

    def passage(self, start: int, end: int) -> Passage:
        """Return what stands between two offsets."""
        return Passage(self.text[start:end], self.written.ink(start, end))

    def become(self, sheet: Sheet) -> None:
        """Show another text, in one step of undo."""
        differs = difference(self.text, sheet.text)
        self.edit(differs.start, differs.old_end, sheet.text[differs.start : differs.new_end], "shown")
        self.written = sheet.written
        self.select(sheet.cursor)

    def undo(self) -> None:
        if self._undo:
            edit = self._undo.pop()
            self._kept -= edit.size
            self._redo.append(self._again(edit))
            self._put(edit.start, edit.start + len(edit.inserted), edit.removed)
            self.written = edit.written
            self.select(edit.cursor, edit.anchor)

    def redo(self) -> None:
        if self._redo:
            edit = self._redo.pop()
            self._keep(self._again(edit))
            self._put(edit.start, edit.start + len(edit.removed), edit.inserted)
            self.written = edit.written
            self.select(edit.start + len(edit.inserted))

    def _again(self, edit: _Edit) -> _Edit:
        """Return an edit for the way back, which restores what is there now and merges with nothing."""
        return _Edit(
            edit.start, edit.removed, edit.inserted, self.written, self.cursor, self.anchor, edit.kind, -MERGE_S
        )

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
            self._keep(_Edit(start, removed, inserted, self.written, self.cursor, self.anchor, kind, now))
            return
        before, last.at = last.size, now
        if start < last.start:
            last.start, last.removed = start, removed + last.removed
        elif removed and removed == last.inserted:
            last.inserted = inserted
        else:
            last.inserted, last.removed = last.inserted + inserted, last.removed + removed
        self._kept += last.size - before

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
    """Return True if a change is one with the last: typing and a generation that grow at their ends, another take in
    the place of what is being generated, text that is deleted letter by letter.
    """
    if last.kind != kind:
        return False
    if kind == "deleted":
        adjacent = start in {last.start, last.start - len(removed)}
        return adjacent and not inserted and not last.inserted and now < last.at + MERGE_S
    grows = not removed and start == last.start + len(last.inserted)
    if kind == "typed":
        return grows and now < last.at + MERGE_S and not inserted.isspace()
    return kind.startswith("generated") and (grows or (start == last.start and removed == last.inserted))


def _moved(position: int, start: int, end: int, length: int, *, after: bool) -> int:
    """Return a position after the characters start to end were replaced by `length` others; `after`: one that is where
    text is inserted, or within what is replaced, comes after the new text; else before it.
    """
    if position < start or (position == start and (start < end or not after)):
        return position
    if position >= end:
        return position + length - (end - start)
    return start + length if after else start
