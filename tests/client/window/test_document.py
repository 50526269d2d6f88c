"""The page's text: edits, undo, marks and takes, against a plain model of them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from client.window.document import Document, Mark, Place, Take, clean

texts = st.text(st.sampled_from("ab\u00df\u4e2d\U0001f600\n "), max_size=6)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), max_size=12))
def test_every_edit_can_be_undone_and_done_again(edits: list[tuple[float, float, str]]) -> None:
    document = Document("Stra\u00dfe \u4e2d\u6587")
    seen = [document.text]
    for number, (a, b, text) in enumerate(edits):
        start, end = sorted((round(a * len(document.text)), round(b * len(document.text))))
        new = document.text[:start] + text + document.text[end:]
        before = document.text
        document.typed(new, start + len(text), now=number * 10.0)
        assert document.text == new
        assert all(0 <= mark.start < mark.end <= len(document.text) for mark in document.marks)
        if document.text != before:
            seen.append(new)
        document.mark(start, start + len(text))
    for text in reversed(seen[:-1]):
        document.undo()
        assert document.text == text
    assert not document.can_undo
    for text in seen[1:]:
        document.redo()
        assert document.text == text
        assert 0 <= document.cursor <= len(text)
    assert not document.can_redo


def test_typing_is_undone_by_words_and_a_generation_at_once() -> None:
    document = Document()
    for i, now in ((1, 0.0), (2, 0.1), (3, 0.2), (4, 5.0)):
        document.typed("abcd"[:i], i, now)
    end = document.edit(4, 4, " one", "generated 1")
    document.edit(end, end, " two", "generated 1")
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
    monkeypatch.setattr("client.window.document.MAX_PLACES_CHARACTERS", 1000)
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


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), max_size=8), st.floats(0, 1), st.floats(0, 1))
def test_what_an_edit_does_not_touch_keeps_its_place(edits: list[tuple[float, float, str]], c: float, d: float) -> None:
    """The cursor, the selection and sticky offsets stay beside the characters that they are beside."""
    document = Document("0123456789" * 3)
    document.select(round(c * 30), round(d * 30))
    document.sticky = {"top": round(c * 30)}
    for a, b, text in edits:
        start, end = sorted((round(a * len(document.text)), round(b * len(document.text))))
        before, was = document.text, {"cursor": document.cursor, "anchor": document.anchor, **document.sticky}
        assert document.edit(start, end, text, "typed") == start + len(text)
        now = {"cursor": document.cursor, "anchor": document.anchor, **document.sticky}
        for name, position in was.items():
            if position < start:
                assert now[name] == position
            elif position > end:
                assert document.text[now[name] :] == before[position:]
            else:
                assert start <= now[name] <= start + len(text)
        if start == end == was["cursor"]:
            assert now["cursor"] == start + len(text) and now["top"] in {start, was["top"]}
    while document.can_undo:
        document.undo()
    assert document.selection == (min(round(c * 30), round(d * 30)), max(round(c * 30), round(d * 30))) or not edits


def test_letters_are_deleted_together_and_an_edit_of_a_selection_restores_it() -> None:
    document = Document("one two")
    for end in (7, 6, 5):
        document.edit(end - 1, end, "", "deleted", 1.0)
    for _ in range(2):
        document.edit(0, 1, "", "deleted", 1.1)
    assert document.text == "e "
    document.undo()
    assert document.text == "one "
    document.undo()
    assert document.text == "one two"
    document.select(7, 4)
    document.edit(4, 7, "2", "typed", 2.0)
    document.undo()
    assert (document.text, document.cursor, document.anchor) == ("one two", 7, 4)


@given(st.text())
def test_cleaned_text_can_be_shown(text: str) -> None:
    cleaned = clean(text)
    assert not any(ord(c) < 32 and c not in "\n\t" for c in cleaned) and clean(cleaned) == cleaned
    cleaned.encode()
