"""The page's text: edits, undo, marks and takes, against a plain model of them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, strategies as st

from client.window.document import Document, Sheet, clean
from client.window.editor.layout import difference
from client.window.marks import Mark, Span, Written


def typed(document: Document, text: str, cursor: int, now: float) -> None:
    """Type what makes the document this text."""
    differs = difference(document.text, text)
    put = text[differs.start : differs.new_end]
    document.edit(differs.start, differs.old_end, put, "typed", now)
    document.select(cursor)


texts = st.text(st.sampled_from("ab\u00df\u4e2d\U0001f600\n "), max_size=6)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), max_size=12))
def test_every_edit_can_be_undone_and_done_again(edits: list[tuple[float, float, str]]) -> None:
    document = Document("Stra\u00dfe \u4e2d\u6587")
    seen = [document.text]
    for number, (a, b, text) in enumerate(edits):
        start, end = sorted((round(a * len(document.text)), round(b * len(document.text))))
        new = document.text[:start] + text + document.text[end:]
        before = document.text
        typed(document, new, start + len(text), now=number * 10.0)
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
        typed(document, "abcd"[:i], i, now)
    end = document.edit(4, 4, " one", "generated 1")
    document.edit(end, end, " two", "generated 1")
    assert document.text == "abcd one two"
    for text in ("abcd", "abc", ""):
        document.undo()
        assert document.text == text


def test_each_paste_is_undone_by_itself() -> None:
    """And so is each page that the history or the tree puts back, where it only adds to the one before."""
    document = Document()
    for text in ("one", "two"):
        document.edit(len(document.text), len(document.text), text, "pasted", 0.1)
    document.become(Sheet("onetwo three", Written(), 12))
    document.become(Sheet("onetwo three four", Written(), 17))
    for text in ("onetwo three", "onetwo", "one", ""):
        document.undo()
        assert document.text == text


def written(document: Document) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    marks = [(mark.start, mark.end) for mark in document.marks]
    return marks, [(span.start, span.end, span.node) for span in document.spans]


def test_marks_follow_the_text_and_a_take_is_more_than_they_are() -> None:
    """What was typed is the user's own, also inside a take."""
    document = Document("one two three")
    document.mark(4, 7, 1)
    typed(document, "0 one two three", 2, 0.0)
    assert written(document) == ([(6, 9)], [(6, 9, 1)])
    typed(document, "0 one twwo three", 8, 10.0)
    assert written(document) == ([(6, 8), (9, 10)], [(6, 10, 1)])
    assert document.passage(5, 10) == (" twwo", ((1, 3), (4, 5)))
    typed(document, "0  three", 2, 20.0)
    assert written(document) == ([], [])
    document.undo()
    at = [document.written.at(position) for position in (5, 8, 10, 11)]
    assert at == [None, Span(6, 10, 1), Span(6, 10, 1), None]
    document.mark(7, 9, 2)
    assert written(document) == ([(6, 9), (9, 10)], [(6, 7, 1), (7, 9, 2)]), "the take around it ends before it"
    assert document.written.at(10) == Span(9, 10, 0)


@pytest.mark.parametrize(
    ("edits", "take"),
    [
        ([(7, 7, "x")], "two"),
        ([(4, 4, "x")], "two"),
        ([(6, 7, "x"), (7, 7, "yz")], "twxyz"),
        ([(6, 7, ""), (6, 6, "x"), (7, 7, "\nand"), (11, 11, "x")], "twx"),
        ([(4, 5, "x"), (4, 4, "y")], "yxwo"),
        ([(4, 5, ""), (4, 4, "T")], "Two"),
        ([(5, 9, "x")], "t"),
        ([(2, 5, "x")], "wo"),
        ([(4, 7, "x")], ""),
    ],
    ids=["after", "before", "end", "line", "start", "letter", "across the end", "across the start", "all"],
)
def test_what_is_changed_in_a_take_is_of_it(edits: list[tuple[int, int, str]], take: str) -> None:
    document = Document("one two three")
    document.mark(4, 7, 1)
    for start, end, text in edits:
        document.edit(start, end, text, "typed")
    assert [document.text[span.start : span.end] for span in document.spans] == ([take] if take else [])


pieces = st.lists(st.integers(0, 30), max_size=12, unique=True).map(sorted)


ranges = st.lists(st.integers(0, 30), max_size=12).map(sorted)


@given(pieces, pieces, ranges, st.lists(texts, min_size=6, max_size=6))
def test_many_edits_at_once_are_as_one_after_another(a: list[int], b: list[int], c: list[int], new: list[str]) -> None:
    before = Written(
        tuple(Mark(start, end) for start, end in zip(a[::2], a[1::2], strict=False)),
        tuple(Span(start, end, start + 1) for start, end in zip(b[::2], b[1::2], strict=False)),
    )
    edits = list(zip(c[::2], c[1::2], new, strict=False))[::-1]
    after = before
    for edit in edits:
        after = after.edited(*edit)
    assert before.edited_all(edits) == after


def test_all_of_a_long_text_is_replaced_at_once() -> None:
    document = Document("word " * 20_000)
    document.mark(0, len(document.text), 1)
    began = time.process_time()
    document.edit_all([(at, at + 4, "other") for at in range(99_995, -1, -5)], "replaced")
    assert time.process_time() - began < 2, "a quadratic one takes a minute"
    assert document.text == "other " * 20_000 and len(document.marks) == 20_000


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
