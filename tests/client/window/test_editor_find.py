"""Searching a page, and what of it stays in sight."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from client.window.editor import find
from client.window.editor.find import Find
from client.window.editor.view import View
from client.window.editor.words import Words
from tests.client.window.test_editor_layout import measure, texts

TEXT = "Thou art more lovely and more temperate. More!"
PLACES = [(9, 13), (25, 29), (41, 45)]


def test_places_are_found_with_and_without_case() -> None:
    assert find.search(TEXT, "more", case=False) == PLACES
    assert find.search(TEXT, "more", case=True) == PLACES[:2]
    assert find.search(TEXT, "a.t", case=False) == [], "it is no pattern"
    assert find.search("aaaa", "aa", case=True) == [(0, 2), (2, 4)]
    assert len(find.search("a" * 50_000, "a", case=True)) == find.MOST


def test_one_goes_round() -> None:
    at = find.following(PLACES, (0, 0))
    seen = [at]
    for _ in range(3):
        assert at
        at = find.following(PLACES, at)
        seen.append(at)
    assert seen == [*PLACES, PLACES[0]]
    assert find.preceding(PLACES, (0, 0)) == PLACES[-1]
    assert find.preceding(PLACES, PLACES[-1]) == PLACES[1]
    assert find.following([], (0, 0)) is None and find.preceding([], (0, 0)) is None
    assert find.following(PLACES, (11, 11)) == PLACES[1], "from the caret on"
    assert [find.number(PLACES, place) for place in [*PLACES, (9, 9), (0, 3)]] == [1, 2, 3, 0, 0]


def test_all_are_replaced() -> None:
    text = TEXT
    for start, end, put in find.replaced(TEXT, Find(text="more", put="less and less")):
        text = text[:start] + put + text[end:]
    assert text == "Thou art less and less lovely and less and less temperate. less and less!"
    assert len(find.replaced("a" * 50_000, Find(text="a", put="b"))) == 50_000, "those that are not shown, too"


def test_nothing_is_searched_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    bar = Find(open=True, text="more")
    first = bar.places(TEXT)
    monkeypatch.setattr(find, "search", lambda *_: pytest.fail("again"))
    assert bar.places(TEXT) is first == PLACES
    bar.open = False
    assert bar.places(TEXT) == []


def view(lines: int = 100) -> View:
    shown = View(height=100.0, line=10.0)
    shown.lay("\n" * (lines - 1), 50.0, measure)
    return shown


def test_a_line_is_brought_into_sight_by_the_least_scrolling() -> None:
    shown = view()
    shown.bring(5)
    assert shown.scroll == 0
    shown.bring(20, margin=10.0)
    assert shown.scroll == 120 and shown.shows(20)
    shown.bring(15)
    assert shown.scroll == 120
    shown.bring(2)
    assert shown.scroll == 20 and not shown.shows(1)
    shown.scroll = 5000.0
    shown.bound(30.0)
    assert shown.scroll == 930
    shown.scroll = -5.0
    shown.bound(30.0)
    assert shown.scroll == 0


def test_a_page_that_is_lower_than_its_margins_still_shows_the_line() -> None:
    shown = view()
    shown.height = 12.0
    shown.bring(50, margin=30.0)
    assert shown.shows(50) and shown.rows == 1


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), max_size=8))
def test_words_are_counted_around_what_has_changed(edits: list[tuple[float, float, str]]) -> None:
    words, text = Words(), ""
    for a, b, put in edits:
        start, end = sorted((round(a * len(text)), round(b * len(text))))
        text = text[:start] + put + text[end:]
        assert words.count(text) == len(text.split())
