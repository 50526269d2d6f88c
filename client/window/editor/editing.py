"""What keys and the mouse do to a page: pure functions of text, caret and layout that return an Edit or a Select.

Offsets are code points. `cursor` is the caret, `anchor` the other end of the selection: the same where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from client.window.editor import clusters
from client.window.editor.layout import Layout

Way: TypeAlias = Literal["left", "right", "up", "down", "home", "end", "page up", "page down"]
Put: TypeAlias = Literal["typed", "pasted"]
Unit: TypeAlias = Literal["character", "word", "paragraph"]
UNITS: dict[int, Unit] = {1: "character", 2: "word", 3: "paragraph"}
"""What is selected by clicks that follow each other."""


EditKind: TypeAlias = Literal["typed", "pasted", "cut", "deleted", "replaced"]


@dataclass(frozen=True)
class Edit:
    """Code points start to end of the page are replaced by a text, behind which the caret is then."""

    start: int
    end: int
    text: str
    kind: EditKind


@dataclass(frozen=True)
class Select:
    """The caret is at `cursor`, and what is between it and `anchor` is selected."""

    anchor: int
    cursor: int


@dataclass
class Hands:
    """What is remembered from one key or click to the next."""

    column: float | None = None
    """The x that Up and Down return to after shorter lines."""
    unit: Unit = "character"
    """What a drag selects."""
    held: tuple[int, int] = (0, 0)
    """What the drag began with, which stays selected."""


def move(
    layout: Layout,
    hands: Hands,
    selected: tuple[int, int],
    way: Way,
    *,
    extend: bool = False,
    far: bool = False,
    rows: int = 1,
) -> Select:
    """Move the caret, or with `extend` the end of the selection. `selected`: anchor and cursor. `far`: by words and
    paragraphs, to the beginning and end of the text. `rows`: lines of a page.
    """
    anchor, cursor = selected
    column, hands.column = hands.column, None
    if way in {"left", "right"}:
        if anchor != cursor and not extend and not far:
            to = min(selected) if way == "left" else max(selected)
        else:
            to = _beside(layout.text, cursor, way == "right", far)
    elif way in {"home", "end"}:
        to = _edge(layout, cursor, way == "end", far)
    elif far and way in {"up", "down"}:
        to = _paragraph(layout.text, cursor, way == "down")
    else:
        line, x = layout.locate(cursor)
        hands.column = x if column is None else column
        to = _row(layout, line, {"up": -1, "down": 1, "page up": -rows, "page down": rows}[way], hands.column)
    return Select(anchor if extend else to, to)


def _beside(text: str, cursor: int, forward: bool, far: bool) -> int:
    if far:
        return clusters.word_after(text, cursor) if forward else clusters.word_before(text, cursor)
    return clusters.after(text, cursor) if forward else clusters.before(text, cursor)


def _edge(layout: Layout, cursor: int, end: bool, far: bool) -> int:
    if far:
        return len(layout.text) if end else 0
    line = layout.line_of(cursor)
    return layout.last(line) if end else layout.span(line)[0]


def _paragraph(text: str, cursor: int, forward: bool) -> int:
    """Return where the next paragraph begins, or this one, or the one before where this one's beginning is here."""
    if forward:
        return clusters.paragraph_at(text, cursor)[1]
    return clusters.paragraph_at(text, max(0, cursor - 1))[0]


def _row(layout: Layout, line: int, step: int, column: float) -> int:
    """Return the offset at a column some lines away; beyond the first line the text's beginning, beyond the last its
    end.
    """
    to = line + step
    if 0 <= to < layout.count:
        return layout.offset_at(to, column)
    if abs(step) > 1 and line not in {0, layout.count - 1}:
        return layout.offset_at(0 if step < 0 else layout.count - 1, column)
    return 0 if step < 0 else len(layout.text)


def erase(text: str, selected: tuple[int, int], *, forward: bool, far: bool = False) -> Edit | None:
    """Remove what is selected, else a character or with `far` a word beside the caret; None where there is nothing."""
    start, end = min(selected), max(selected)
    if start == end:
        start, end = sorted((start, _beside(text, start, forward, far)))
    return Edit(start, end, "", "deleted") if end > start else None


def put(selected: tuple[int, int], text: str, kind: Put) -> Edit:
    """Put a text in the place of what is selected."""
    return Edit(min(selected), max(selected), text, kind)


def press(
    layout: Layout, hands: Hands, selected: tuple[int, int], offset: int, clicks: int = 1, *, extend: bool = False
) -> Select:
    """Set the caret by a click; by a double click select a word, by a triple click a paragraph; extend with Shift."""
    hands.column = None
    if extend:
        hands.unit, hands.held = "character", (selected[0], selected[0])
        return drag(layout, hands, offset)
    hands.unit = UNITS[min(clicks, 3)]
    hands.held = _unit(layout.text, offset, hands.unit)
    return Select(*hands.held)


def drag(layout: Layout, hands: Hands, offset: int) -> Select:
    """Select from where the mouse was pressed to here, in whole words or paragraphs after a double or triple click."""
    start, end = _unit(layout.text, offset, hands.unit)
    if offset < hands.held[0]:
        return Select(hands.held[1], start)
    return Select(hands.held[0], max(end, hands.held[1]))


def _unit(text: str, offset: int, unit: Unit) -> tuple[int, int]:
    if unit == "word":
        return clusters.word_at(text, offset)
    if unit == "paragraph":
        return clusters.paragraph_at(text, offset)
    return offset, offset
