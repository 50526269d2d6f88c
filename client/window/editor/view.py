"""What the page's widget remembers from one frame to the next: how it is laid out and scrolled, what the hands hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from client.window.editor.editing import Hands
from client.window.editor.layout import Layout, Measure
from client.window.editor.words import Words

Wish: TypeAlias = Literal["", "cut", "copy", "paste", "select all"]
TOP = "the page's first line"
"""Name of the document's sticky offset at which the first line in sight begins."""


@dataclass(slots=True)
class View:
    hands: Hands = field(default_factory=Hands)
    layout: Layout | None = None
    scroll: float = 0.0
    """Pixels of the text above what is in sight."""
    height: float = 0.0
    """Pixels of the text that are in sight."""
    line: float = 1.0
    """Pixels of a line."""
    origin: tuple[float, float] = (0.0, 0.0)
    """Where the text begins on the screen, scrolled as it is."""
    bare: bool = False
    """Its window has no background: what the frame was cleared to is seen."""
    paper: tuple[float, float, float, float] | None = None
    """Left, top, right and bottom of the page where it is bare; None: it has its own background, or is not drawn."""
    keyboard: bool = False
    """The page has the keyboard."""
    lent: bool = False
    """A field of the page's own, as that of the search, has the keyboard."""
    reveal: bool = False
    """The caret comes into sight in the next frame."""
    dragging: bool = False
    moving: bool = False
    """The next frame differs without any event: text scrolls under a drag."""
    menu: bool = False
    """The right button was pressed: the menu opens."""
    wish: Wish = ""
    """What a menu asks for, done in the next frame."""
    hovered: int | None = None
    """Offset of the character under the pointer."""
    words: Words = field(default_factory=Words)
    followed: bool = False
    """What is written was in sight in the last frame."""

    def lay(self, text: str, width: float, measure: Measure) -> Layout:
        """Return the layout of a text; nothing is done where nothing has changed."""
        if self.layout is None or self.layout.measure is not measure:
            self.layout = Layout(measure)
        self.layout.lay(text, width)
        return self.layout

    def place(self, offset: int) -> tuple[float, float]:
        """Return the upper left corner of a character on the screen."""
        line, x = self.layout.locate(offset) if self.layout else (0, 0.0)
        return self.origin[0] + x, self.origin[1] + line * self.line

    @property
    def sight(self) -> tuple[int, int]:
        """Where what was in sight in the last frame begins and ends."""
        if self.layout is None:
            return 0, 0
        first, last = (int(y / self.line) for y in (self.scroll, self.scroll + self.height))
        return self.layout.span(min(first, self.layout.count - 1))[0], self.layout.span(
            min(last, self.layout.count - 1)
        )[1]

    @property
    def rows(self) -> int:
        """Number of lines that PageUp and PageDown go by."""
        return max(1, int(self.height / self.line) - 1)

    def shows(self, line: int) -> bool:
        """Return True if a line is wholly in sight."""
        return self.scroll <= line * self.line + 1 and (line + 1) * self.line <= self.scroll + self.height + 1

    def bring(self, line: int, margin: float = 0.0) -> None:
        """Scroll as little as is needed for a line to be in sight, with a margin above and below it."""
        margin = min(margin, max(0.0, (self.height - self.line) / 2))
        top, bottom = line * self.line - margin, (line + 1) * self.line + margin
        self.scroll = max(min(self.scroll, top), bottom - self.height)

    def bound(self, below: float) -> None:
        """Keep the scrolling within the text and the space below it."""
        lines = self.layout.count if self.layout else 1
        self.scroll = max(0.0, min(self.scroll, lines * self.line + below - self.height))
