"""Part of AppState: the page, the generation that writes into it, and what the user has chosen on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.window.document import Document
from client.window.editor.find import Find
from client.window.editor.view import View
from client.window.sidecar import Branches
from client.window.textfile import TextFile
from client.window.tree import Tree
from protocol import messages as m

REST_S = 0.25
"""Seconds for which the mouse rests on a word of the page before the list of what else could stand there opens."""
STOP_S, MAX_LATE = 0.25, 16
"""The last words of a generation that is stopped are waited for this long; a worker that stands still has none. And the
number of such generations whose results still go into the history.
"""


@dataclass(slots=True)
class Generating:
    """The generation that writes into the page."""

    start: int
    end: int
    """It has written the characters of the page from `start` to here."""
    prompt: str
    asked: int
    """Most new tokens, of all continuations together."""
    began: float
    place: int = 0
    """Place in the server's queue; 0: running."""
    stopping: bool = False
    stopped_at: float = 0.0
    unloads: bool = False
    """The user has asked for its model to be unloaded: an end by that is a stop, no failure."""
    tokens: int = 0
    """Number of new tokens so far."""
    first_at: float = 0.0
    """Time of the first of them, and of the latest."""
    latest_at: float = 0.0
    spaces: list[int] = field(default_factory=list)
    """For each continuation, the number of spaces at the prompt's end that were not sent: as many leading ones of the
    answer are dropped.
    """
    dropped: list[int] = field(default_factory=list)
    """For each, the number of leading spaces that were dropped."""
    begins: Branch | None = None
    """The tokens that it goes on from, which belong to it."""
    until: int = 0
    """The first text takes the place of what stands before this character."""
    nodes: dict[int, int] = field(default_factory=dict)
    """Number of a continuation -> its take; empty until there is some text."""
    index: int = 0
    """The continuation that is on the page."""
    way: tuple[str, str, str] = ("", "", "")
    """Model, engine and precision that write."""
    wanted: Wanted | None = None
    """What it came from."""
    number: int = 0
    """Number of its request."""
    instead: int = 0
    """The take in whose place it was written; 0: none."""

    @property
    def rate(self) -> float:
        """Tokens a second, from the first to the latest; 0 until there are some."""
        took = self.latest_at - self.first_at
        return (self.tokens - 1) / took if took > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is written as soon as the chosen model is loaded."""

    action: Any
    """An events.WriteAction."""
    missing: bool = False
    """The server has said that the model is not loaded, whatever it said before."""


@dataclass(slots=True)
class Branch:
    """A token was chosen instead of another: the server is being asked what it takes to go on from it."""

    start: int
    ids: list[int]
    """The tokens after the prompt, the chosen one last."""
    tokens: list[m.TokenLogprobs]
    """What is known of each."""
    prompt_ids: list[int] | None = None
    text: str | None = None


@dataclass(slots=True)
class Page:
    document: Document = field(default_factory=Document)
    tree: Tree = field(default_factory=Tree)
    path: Path | None = None
    file: TextFile = field(default_factory=TextFile)
    """The file as it was opened or saved."""
    autosaved: int = 0
    """Version of the document that was autosaved."""
    autosaved_at: float = 0.0
    branches_saved: int = 0
    """Version of the tree that is beside the file."""
    offered: Branches | None = None
    """Branches of another version of the text, which were beside it."""
    generating: Generating | None = None
    wanted: Wanted | None = None
    branch: Branch | None = None
    asked: int = 0
    """Number of generations that were asked for."""
    late: dict[int, Generating] = field(default_factory=dict)
    """Generations that were stopped, by number, for whose results the page does not wait: the history does."""
    batch: list[int] = field(default_factory=list)
    """The takes that were written at once and are shown side by side."""
    move_cursor: bool = False
    """The text field takes over the document's cursor in its next frame."""
    counted: int = -1
    """Version of the document whose tokens were counted."""
    counting: bool = False
    changed_at: float = 0.0
    tokens: int = 0
    """Tokens before the cursor; of a long page an estimate."""
    known: bool = False
    """`tokens` is of the place of the cursor, if perhaps of a text that was edited since."""
    exact: bool = True
    view: View = field(default_factory=View)
    find: Find = field(default_factory=Find)
    sight: int = 0
    """The character where the model's sight begins."""

    def uncount(self) -> None:
        """Have the tokens counted again: what is known is of another place, text or model."""
        self.counted, self.known = -1, False

    def leave(self, going: Generating) -> None:
        """Leave the result of a generation to the history."""
        self.late[going.number] = going
        if len(self.late) > MAX_LATE:
            del self.late[min(self.late)]

    @property
    def busy(self) -> bool:
        """True while something is written, or waits for its model."""
        return self.generating is not None or self.wanted is not None

    @property
    def last(self) -> int | None:
        """Character at which the last generation began."""
        return self.document.sticky.get("last")

    @last.setter
    def last(self, start: int) -> None:
        self.document.sticky["last"] = start

    @property
    def dirty(self) -> bool:
        return self.document.text != self.file.text


@dataclass(slots=True)
class Hovered:
    """The token that the mouse rests on, and the list of what else could stand there."""

    offset: int
    """Where it begins."""
    version: int
    """Of the text that it is in."""
    since: float
    word: tuple[float, float, float, float]
    """Left, top, right and bottom of the place on the screen that the mouse is on, and of the list."""
    list: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    opened: bool = False
    drawn: int = 0
    """Number of frames in which the list was drawn: it takes some to find its size."""
