"""The page's text: edits, undo, marks and takes, against a plain model of them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from client.window.document import Document, Mark, Place, Take, clean

texts = st.text(st.sampled_from("ab\u00df\u00e9\u0129\u4e2d\U0001f600\n "), max_size=6)
"""Of the bytes of two of them the first are the same, and of two others the last."""


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), max_size=12))
def test_every_edit_can_be_undone_and_done_again(edits: list[tuple[float, float, str]]) -> None:
    document = Document("Stra\u00dfe \u4e2d\u6587")
    seen = [document.text]
    for number, (a, b, text) in enumerate(edits):
        start, end = sorted((round(a * len(document.text)), round(b * len(document.text))))
        new = document.text[:start] + text + document.text[end:]
        before = document.data
        document.typed(new, len(new[: start + len(text)].encode()), now=number * 10.0)
        assert document.text == new
        assert all(0 <= mark.start < mark.end <= len(document.data) for mark in document.marks)
        if document.data != before:
            seen.append(new)
        document.mark(len(new[:start].encode()), len(new[: start + len(text)].encode()))
    for text in reversed(seen[:-1]):
        document.undo()
        assert document.text == text
    assert not document.can_undo
    for text in seen[1:]:
        document.redo()
        assert document.text == text
        document.data[: document.cursor].decode()  # it is between two characters
    assert not document.can_redo


def test_typing_is_undone_by_words_and_a_generation_at_once() -> None:
    document = Document()
    for i, now in ((1, 0.0), (2, 0.1), (3, 0.2), (4, 5.0)):
        document.typed("abcd"[:i], i, now)
    end = document.replace(4, 4, " one", "generated 1")
    document.replace(end, end, " two", "generated 1")
    assert document.text == "abcd one two"
    for text in ("abcd", "abc", ""):
        document.undo()
        assert document.text == text


def test_marks_follow_the_text() -> None:
    document = Document("one two three")
    document.mark(4, 7)
    document.typed("0 one two three", 2, 0.0)
    assert document.marks == [Mark(6, 9)]
    document.typed("0 one twwo three", 8, 10.0)
    assert document.marks == [Mark(6, 10)]
    document.typed("0  three", 2, 20.0)
    assert document.marks == []
    document.undo()
    assert document.marks == [Mark(6, 10)] and document.mark_at(10) == Mark(6, 10) and document.mark_at(11) is None


def test_places_are_found_by_what_stands_before_them() -> None:
    document = Document("Once upon a time")
    document.place(4).takes.append(Take("x"))
    assert document.known_place(4) is document.place(4) and document.known_place(5) is None
    document.typed("Twice upon a time", 5, 0.0)
    assert document.known_place(4) is None
    for i in range(300):
        document.typed(f"{i} upon", 3, float(i))
        document.place(3)
    assert len(document.places) == 200


def test_places_after_much_text_are_forgotten_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.window.document.MAX_PLACES_BYTES", 1000)
    document = Document("x" * 2000)
    for start in (300, 301, 302, 300):
        document.place(start)
    assert [len(key) for key in document.places] == [301, 302, 300]
    document.place(303)
    assert [len(key) for key in document.places] == [302, 300, 303]
    document.place(2000)
    assert [len(key) for key in document.places] == [2000], "the one that was asked for is there"
    document.place(3)
    assert [len(key) for key in document.places] == [3]


def test_the_oldest_takes_are_forgotten() -> None:
    place = Place([Take(str(i)) for i in range(60)], 7)
    place.show_last()
    assert [take.text for take in place.takes] == [str(i) for i in range(10, 60)] and place.shown == 49


@given(st.text())
def test_cleaned_text_can_be_shown(text: str) -> None:
    cleaned = clean(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in cleaned) and clean(cleaned) == cleaned
    cleaned.encode()
