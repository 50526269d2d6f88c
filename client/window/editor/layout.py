"""Lays a text out in lines of a width: text -> lines -> positions. Pure: how wide a character is, the caller says.

Every line is as high as every other, so the lines are one sorted array of the offsets at which they begin. An edit lays
out only the lines that it can change: a line depends on nothing before its beginning, so once a new line begins where
an old one did behind the edit, the old ones follow. Spaces at the end of a line hang over its edge.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from client.window.editor import clusters

Codes: TypeAlias = NDArray[np.uint32]
Advances: TypeAlias = NDArray[np.float64]
Measure: TypeAlias = Callable[[Codes], Advances]
"""Code points -> how far each moves the pen."""

CHUNK, SMALL = 1 << 16, 1 << 10
"""Number of code points that are measured together: of a whole text, and behind an edit."""
LONGEST = 4096
"""Most code points of a line, however narrow they are."""
BACK = 4
"""Number of lines before an edit that it can change: a word that got shorter may fit where it did not."""
CONTEXT = 2
"""Number of code points before a place that decide whether a line may end there."""
SLACK = 0.01
"""What a line may exceed the width by: sums of advances are rounded."""
NEWLINE = 10
SPACES = np.array([0x20, 0x09, 0x1680, *range(0x2000, 0x2007), *range(0x2008, 0x200B), 0x205F, 0x3000], np.uint32)
HYPHENS = np.array([0x2D, 0x2010, 0x2012, 0x2013, 0x2014, 0x2F], np.uint32)
OPENING = np.array([ord(c) for c in "\u3008\u300a\u300c\u300e\u3010\u3014\uff08\uff3b\uff5b"], np.uint32)
CLOSING = np.array(
    [
        ord(c)
        for c in "\u3001\u3002\u3009\u300b\u300d\u300f\u3011\u3015\uff01\uff09\uff0c\uff0e\uff1a\uff1b\uff1f\u30fc"
    ],
    np.uint32,
)
WIDE = 0x2E80
"""First of the code points between which lines may end: those of Chinese, Japanese and Korean."""
KIND_SPACE, KIND_HYPHEN = 1, 2
KIND_OPENING, KIND_CLOSING = 4, 8


def _kinds() -> NDArray[np.uint8]:
    table = np.zeros(0x10000, np.uint8)
    table[SPACES] |= KIND_SPACE
    table[HYPHENS] |= KIND_HYPHEN
    table[OPENING] |= KIND_OPENING
    table[CLOSING] |= KIND_CLOSING
    return table


KINDS = _kinds()
"""Kind of each code point that is at most U+FFFF."""


class Layout:
    """A text in lines. `lay` gives it another text or width."""

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.text = ""
        self.width = 0.0
        self.starts: NDArray[np.int64] = np.zeros(1, np.int64)
        """Offset at which each line begins."""
        self._positions: dict[int, Advances] = {}

    @property
    def count(self) -> int:
        """Number of lines; an empty text has one."""
        return len(self.starts)

    def lay(self, text: str, width: float) -> None:
        """Lay out another text, or the same one in another width."""
        if width != self.width:
            self.text, self.width = text, width
            self.starts = np.array([0, *self._wrap(0)[0]], np.int64)
            self._positions.clear()
        elif text != self.text:
            self._edited(text)

    def line_of(self, offset: int) -> int:
        """Return the number of the line that an offset is in; where a line was broken, it is in the second part."""
        return int(np.searchsorted(self.starts, offset, "right")) - 1

    def span(self, line: int) -> tuple[int, int]:
        """Return where a line begins and ends, without its line end."""
        start, end = int(self.starts[line]), self._next(line)
        return start, end - 1 if end > start and self.text[end - 1] == "\n" else end

    def last(self, line: int) -> int:
        """Return the last offset at which a caret is seen in a line."""
        start, end = self.span(line)
        broken = line + 1 < self.count and end == self._next(line)
        return max(start, clusters.before(self.text, end)) if broken else end

    def positions(self, line: int) -> Advances:
        """Return the x of each offset of a line, and of its end."""
        if line not in self._positions:
            if len(self._positions) > 1000:
                self._positions.clear()
            start, end = self.span(line)
            self._positions[line] = _summed(self.measure(_codes(self.text[start:end])))
        return self._positions[line]

    def locate(self, offset: int) -> tuple[int, float]:
        """Return line and x of an offset."""
        line = self.line_of(offset)
        start, end = self.span(line)
        return line, float(min(self.positions(line)[min(offset, end) - start], self.width))

    def offset_at(self, line: int, x: float) -> int:
        """Return the offset in a line that is nearest to x, between two characters."""
        line = max(0, min(line, self.count - 1))
        start = int(self.starts[line])
        xs = self.positions(line)
        low = clusters.snap(self.text, start + max(0, int(np.searchsorted(xs, x, "right")) - 1))
        high = clusters.after(self.text, low) if low < start + len(xs) - 1 else low
        nearer_high = high - start < len(xs) and x - xs[low - start] > xs[high - start] - x
        return max(start, min(high if nearer_high else low, self.last(line)))

    def character_at(self, line: int, x: float) -> int | None:
        """Return the offset of the character that is under x in a line; None beside the text."""
        if not 0 <= line < self.count:
            return None
        xs = self.positions(line)
        index = int(np.searchsorted(xs, x, "right")) - 1
        return int(self.starts[line]) + index if 0 <= index < len(xs) - 1 else None

    def _next(self, line: int) -> int:
        return int(self.starts[line + 1]) if line + 1 < self.count else len(self.text)

    def _edited(self, text: str) -> None:
        """Lay out the lines around what differs between the text and the one before."""
        differs = difference(self.text, text)
        line = self.line_of(differs.start)
        first = line
        while first > max(0, line - BACK) and self.text[int(self.starts[first]) - 1] != "\n":
            first -= 1
        moved = differs.new_end - differs.old_end
        self.text = text
        following = int(np.searchsorted(self.starts, differs.old_end + CONTEXT, "left"))
        after = self.starts[following:] + moved
        begins, met = self._wrap(int(self.starts[first]), after)
        kept = after[np.searchsorted(after, begins[-1], "right") :] if met else after[:0]
        before, self.starts = self.starts, np.concatenate([self.starts[: first + 1], np.array(begins, np.int64), kept])
        while first < line and first + 1 < self.count and before[first + 1] == self.starts[first + 1]:
            first += 1  # they end before the edit, and where they did
        self._follow(first, len(before) - len(kept) - 1 if met else len(before), self.count - len(before))

    def _follow(self, first: int, last: int, by: int) -> None:
        """Keep the positions of the lines before `first`, and of those from `last` on, whose numbers have changed."""
        known = self._positions.items()
        self._positions = {line + by * (line >= last): xs for line, xs in known if line < first or line >= last}

    def _wrap(self, first: int, old: NDArray[np.int64] | None = None) -> tuple[list[int], bool]:
        """Return where the lines after the one at `first` begin; with `old`, beginnings before the edit, only up to the
        first that is one of these, and True if there was one: it is followed by the same lines as before.
        """
        begins = list[int]()
        behind = int(old[0]) if old is not None and len(old) else len(self.text) + 1
        size = CHUNK if old is None else SMALL
        while True:
            at = begins[-1] if begins else first
            low = max(0, at - CONTEXT)
            part = _Part(self.text[low : at + size], self.measure, final=at + size >= len(self.text))
            while (found := part.following((begins[-1] if begins else first) - low, self.width)) > 0:
                begins.append(self._between(low + found, begins[-1] if begins else first))
                if begins[-1] >= behind and old is not None and _contains(old, begins[-1]):
                    return begins, True
            if found == END:
                return begins, False
            size = min(size * 2, CHUNK) if begins and begins[-1] > at else size * 2

    def _between(self, offset: int, line: int) -> int:
        """Return a place where a line may end, so that it is in no cluster: before it, unless the line begins there."""
        if clusters.is_boundary(self.text, offset):
            return offset
        snapped = clusters.snap(self.text, offset)
        return snapped if snapped > line else min(clusters.after(self.text, offset), len(self.text))


END, MORE = -1, -2


class _Part:
    """A part of the text, measured at once, with the places at which lines may end."""

    def __init__(self, text: str, measure: Measure, *, final: bool) -> None:
        """`final`: the text ends with this part."""
        codes = _codes(text)
        self.length, self.final = len(codes), final
        self._sums = array("d", _summed(measure(codes)).tobytes())
        kinds = np.where(codes < len(KINDS), KINDS[np.minimum(codes, len(KINDS) - 1)], 0)
        space = (kinds & KIND_SPACE) != 0
        before = np.arange(self.length + 1)
        before[1:] = np.maximum.accumulate(np.where(space, -1, before[:-1])) + 1
        before[0] = 0
        # Index i: a line may end before code point i + 1.
        plain = ~space[1:]
        ends = space[:-1] & plain
        if codes.max(initial=0) >= WIDE:  # most texts have none, and each step here costs a frame beside a decoder
            wide = ((codes >= WIDE) & (codes < 0xA000)) | ((codes >= 0xF900) & (codes < 0xFB00)) | (codes >= 0x20000)
            wide |= (codes >= 0xFF00) & (codes < 0xFFF0)
            opens, closes = (kinds[:-1] & KIND_OPENING) != 0, (kinds[1:] & KIND_CLOSING) != 0
            ends |= (wide[:-1] | wide[1:]) & plain & ~opens & ~closes
        hyphen = (kinds & KIND_HYPHEN) != 0
        if hyphen.any():
            joins = plain & ~hyphen[1:] & ~((codes[1:] >= 0x30) & (codes[1:] < 0x3A))
            ends[1:] |= hyphen[1:-1] & ~space[:-2] & ~hyphen[:-2] & joins[1:]
        places = np.flatnonzero(ends) + 1
        self._places, self._contents = places.tolist(), before[places].tolist()
        newlines = np.flatnonzero(codes == NEWLINE)
        self._newlines, self._filled = newlines.tolist(), before[newlines].tolist()
        if final:
            self._newlines.append(self.length)
            self._filled.append(int(before[self.length]))

    def following(self, line: int, width: float) -> int:
        """Return where the next line begins after the one at `line`; END: nowhere, MORE: this part is too short."""
        sums = self._sums
        high = min(self.length, line + LONGEST)
        fits = bisect_right(sums, sums[line] + width + SLACK, line, high + 1) - 1
        at = bisect_left(self._newlines, line)
        if at < len(self._newlines) and self._filled[at] <= fits:
            end = self._newlines[at]
            return end + 1 if end < self.length else END
        if not self.final and fits + CONTEXT >= self.length:
            return MORE
        place = bisect_right(self._contents, fits) - 1
        if place >= 0 and self._places[place] > line:
            # The spaces behind the content may go on in the next part.
            return int(self._places[place]) if self.final or self._places[place] + 1 < self.length else MORE
        return max(fits, line + 1)


class Difference(NamedTuple):
    """Where two texts begin to differ, and where that ends in each."""

    start: int
    old_end: int
    new_end: int


def difference(old: str, new: str) -> Difference:
    if new.startswith(old):  # what is written at the end is found without a copy of the text
        return Difference(len(old), len(old), len(new))
    least = min(len(old), len(new))
    start = _longest(least, lambda a, b: new.startswith(old[a:b], a))
    rest = _longest(least - start, lambda a, b: new.startswith(old[len(old) - b : len(old) - a], len(new) - b))
    return Difference(start, len(old) - rest, len(new) - rest)


def _longest(most: int, same: Callable[[int, int], bool]) -> int:
    """Return the largest n up to `most` for which all below are the same, by bisection of what is not known yet."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if same(low, middle):
            low = middle
        else:
            high = middle - 1
    return low


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _summed(advances: Advances) -> Advances:
    sums = np.zeros(len(advances) + 1)
    np.cumsum(advances, out=sums[1:])
    return sums


def _contains(offsets: NDArray[np.int64], offset: int) -> bool:
    index = int(np.searchsorted(offsets, offset))
    return index < len(offsets) and int(offsets[index]) == offset
