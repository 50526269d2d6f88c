"""What of a page was generated: marks, the characters that a model wrote; and spans, the takes that the page shows,
with what the user has changed in them. Both are offsets, which every edit shifts.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple


class Mark(NamedTuple):
    """The characters from start to end were generated."""

    start: int
    end: int


@dataclass(frozen=True)
class Span:
    """The characters from start to end are a take; `node` is its number, 0: of none that is known."""

    start: int
    end: int
    node: int
    begun: bool = False
    """Its first characters were changed: what is inserted exactly there is of it."""
    open: bool = False
    """Its last characters were changed, likewise, until a new line is begun."""


class Passage(NamedTuple):
    """A piece of a text, and which characters of it were generated: (start, end)."""

    text: str
    ink: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Written:
    """Marks and spans of a page, each in order and without overlap."""

    marks: tuple[Mark, ...] = ()
    spans: tuple[Span, ...] = ()

    def edited(self, start: int, end: int, inserted: str) -> Written:
        """Return them after the characters from start to end were replaced. What is typed inside a mark splits it."""
        marks, by = list[Mark](), len(inserted) - (end - start)
        for mark in self.marks:
            if mark.end <= start:
                marks.append(mark)
            elif mark.start >= end:
                marks.append(Mark(mark.start + by, mark.end + by))
            elif not inserted and mark.start < start and mark.end > end:
                marks.append(Mark(mark.start, mark.end + by))
            else:
                pieces = (mark.start, start), (end + by, mark.end + by)
                marks += [Mark(*piece) for piece in pieces if piece[0] < piece[1]]
        spans = [_edited(span, start, end, inserted) for span in self.spans]
        return Written(tuple(marks), tuple(span for span in spans if span and span.start < span.end))

    def edited_all(self, edits: Sequence[tuple[int, int, str]]) -> Written:
        """Return them after edits that do not overlap, the last place first: as after each of them, at once."""
        if len(edits) == 1:
            return self.edited(*edits[0])
        ahead = list(edits)[::-1]
        starts, ends = [start for start, _, _ in ahead], [end for _, end, _ in ahead]
        shifts = [0, *itertools.accumulate(len(text) - (end - start) for start, end, text in ahead)]
        marks, spans = list[Mark](), list[Span]()
        for mark in self.marks:
            first, last = bisect.bisect_right(ends, mark.start), bisect.bisect_left(starts, mark.end)
            pieces, at = list[Mark](), mark.start
            for number in range(first, last + 1):
                end = starts[number] if number < last else mark.end
                piece = Mark(at + shifts[number], end + shifts[number])
                if end > at and pieces and pieces[-1].end == piece.start:
                    pieces[-1] = Mark(pieces[-1].start, piece.end)
                elif end > at:
                    pieces.append(piece)
                at = ends[number] if number < last else end
            marks += pieces
        for span in self.spans:
            first, last = bisect.bisect_left(ends, span.start), bisect.bisect_right(starts, span.end)
            left: Span | None = span
            for start, end, text in reversed(ahead[first:last]):
                left = _edited(left, start, end, text) if left else None
            if left and left.start < left.end:
                spans.append(replace(left, start=left.start + shifts[first], end=left.end + shifts[first]))
        return Written(tuple(marks), tuple(spans))

    def without(self, start: int, end: int) -> Written:
        """Return them with nothing from start to end; a take that was around it ends before it."""
        marks = [Mark(m.start, min(m.end, start)) for m in self.marks if m.start < start]
        marks += [Mark(max(m.start, end), m.end) for m in self.marks if m.end > end]
        spans = [s if s.end <= start else replace(s, end=start, open=False) for s in self.spans if s.start < start]
        spans += [
            s if s.start >= end else replace(s, start=end) for s in self.spans if s.end > end and s.start >= start
        ]
        return Written(tuple(marks), tuple(spans))

    def added(self, start: int, end: int, node: int) -> Written:
        """Return them with generated characters of a take, which may go on where it ended."""
        if start >= end:
            return self
        there = self.without(start, end)
        before = [mark for mark in there.marks if mark.end <= start]
        after = there.marks[len(before) :]
        begin = before.pop().start if before and before[-1].end == start else start
        spans = [span for span in there.spans if span.node != node or not node]
        own = next((span.start for span in self.spans if span.node == node and node), start)
        if node:
            spans.append(Span(min(own, start), end, node))
        return Written((*before, Mark(begin, end), *after), tuple(sorted(spans, key=lambda span: span.start)))

    def shown(self, start: int, passage: Passage, node: int) -> Written:
        """Return them with a take at `start`."""
        end = start + len(passage.text)
        there = self.without(start, end)
        marks = [*there.marks, *(Mark(start + a, start + b) for a, b in passage.ink)]
        spans = [*there.spans, Span(start, end, node)]
        return Written(
            tuple(sorted(marks, key=lambda mark: mark.start)), tuple(sorted(spans, key=lambda span: span.start))
        )

    def labelled(self, node: int, other: int) -> Written:
        """Return them with one take for another."""
        return Written(self.marks, tuple(replace(s, node=other) if s.node == node else s for s in self.spans))

    def at(self, position: int) -> Span | None:
        """Return the take that a position is in, or at the end of; where there is none, what else was generated."""
        span = next((span for span in reversed(self.spans) if span.start <= position <= span.end), None)
        mark = next((mark for mark in reversed(self.marks) if mark.start <= position <= mark.end), None)
        if span or mark is None:
            return span
        start = max([mark.start, *(s.end for s in self.spans if s.end <= position)])
        return Span(start, min([mark.end, *(s.start for s in self.spans if s.start >= position)]), 0)

    def ink(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """Return what was generated between two offsets, from the first of them."""
        if start >= end:
            return ()
        first = bisect.bisect_right(self.marks, start, key=lambda mark: mark.end)
        there = itertools.takewhile(lambda mark: mark.start < end, itertools.islice(self.marks, first, None))
        return tuple((max(m.start, start) - start, min(m.end, end) - start) for m in there)


def _edited(span: Span, start: int, end: int, inserted: str) -> Span | None:
    """Return a take after an edit; None if nothing is left of it."""
    by = len(inserted) - (end - start)
    if span.start < start and span.end > end:
        return replace(span, end=span.end + by)
    if start == end and start in {span.start, span.end}:
        return _at_its_end(span, start, inserted)
    if span.end <= start:
        return span
    if span.start >= end:
        return replace(span, start=span.start + by, end=span.end + by)
    if start <= span.start and end >= span.end:  # all of it
        return None
    if span.start < start:  # its last characters
        of_it = end == span.end and "\n" not in inserted
        return replace(span, end=start + len(inserted) if of_it else start, open=of_it)
    return replace(span, start=start if start == span.start else end + by, end=span.end + by, begun=start == span.start)


def _at_its_end(span: Span, at: int, inserted: str) -> Span:
    length = len(inserted)
    if at == span.start:
        return replace(span, start=at if span.begun else at + length, end=span.end + length)
    of_it = span.open and "\n" not in inserted
    return replace(span, end=span.end + length if of_it else span.end, open=of_it)
