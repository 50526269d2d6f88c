"""Pieces of text that came together are taken as one."""

from __future__ import annotations

import pytest

from tests.conftest import WINDOW

pytest.importorskip("client.window.events", exc_type=ImportError, reason=WINDOW)

from client.window.events import Broken, Event, Replied, Tag
from client.window.pieces import joined
from protocol import messages as m


def piece(text: str, index: int = 0, tag: Tag = "page", of: int = 1) -> Replied:
    ids = [ord(letter) for letter in text]
    return Replied(tag, m.Tokens(id=3, seq=0, text=text, ids=ids, index=index), 4.0, of)


def texts(events: list[Event]) -> list[str]:
    """Return the texts of pieces, and the names of other events."""
    return [
        e.event.text if isinstance(e, Replied) and isinstance(e.event, m.Tokens) else type(e).__name__ for e in events
    ]


def test_pieces_of_one_text_are_one_piece() -> None:
    assert joined([piece("Once"), piece(""), piece(" up"), piece("on")]) == [piece("Once upon")]
    assert joined([]) == [] and joined([piece("Once")]) == [piece("Once")]


def test_texts_that_are_written_together_stay_apart_in_the_order_in_which_they_began() -> None:
    assert joined([piece("b", 1), piece("a"), piece("B", 1), piece("A")]) == [piece("bB", 1), piece("aA")]
    others = joined([piece("a"), piece("b", of=2), piece("c", tag="compare"), piece("d")])
    assert texts(others) == ["ad", "b", "c"]


def test_nothing_is_taken_before_what_came_between() -> None:
    events: list[Event] = [piece("a"), piece("b"), Broken(), piece("c"), piece("d")]
    assert texts(joined(events)) == ["ab", "Broken", "cd"]
