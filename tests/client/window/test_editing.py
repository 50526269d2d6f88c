"""Keys and clicks on a page, without a window: where the caret goes, what is selected, what is erased."""

from __future__ import annotations

from typing import get_args

import regex
from hypothesis import given, strategies as st

from client.window.editor import clusters
from client.window.editor.editing import Edit, Hands, Select, Way, drag, erase, move, press, put
from tests.client.window.test_editor_layout import laid, texts

FAMILY = "\U0001f469\u200d\U0001f469\u200d\U0001f466"
FLAG = "\U0001f1e9\U0001f1ea"
POEM = "Shall I compare thee\nto a summer's day?\n\nThou art more lovely"


class Hand:
    """A caret on a page that is 20 wide."""

    def __init__(self, text: str, cursor: int = 0, width: float = 20.0) -> None:
        self.layout = laid(text, width)
        self.hands = Hands()
        self.selected = cursor, cursor

    @property
    def cursor(self) -> int:
        return self.selected[1]

    def go(self, way: Way, *, extend: bool = False, far: bool = False, rows: int = 3) -> int:
        done = move(self.layout, self.hands, self.selected, way, extend=extend, far=far, rows=rows)
        self.selected = done.anchor, done.cursor
        return self.cursor


def test_arrows_go_by_characters_as_people_see_them() -> None:
    hand = Hand(f"a{FAMILY}{FLAG}{FLAG}e\u0301\n")
    stops = [1, 1 + len(FAMILY), 3 + len(FAMILY), 5 + len(FAMILY), 7 + len(FAMILY), 8 + len(FAMILY)]
    assert [hand.go("right") for _ in range(7)] == [*stops, stops[-1]]
    assert [hand.go("left") for _ in range(7)] == [*reversed(stops[:-1]), 0, 0]


def test_words() -> None:
    hand = Hand("don't stop \u2014 here,  now")
    assert [hand.go("right", far=True) for _ in range(5)] == [5, 10, 17, 23, 23]
    assert [hand.go("left", far=True) for _ in range(5)] == [20, 13, 6, 0, 0]
    hand = Hand("a" * 20)
    assert hand.go("right", far=True) == 20


def test_words_of_scripts_without_spaces_end_where_the_script_changes() -> None:
    """Ctrl+Backspace would erase a whole sentence."""
    words = ["\u6771\u4eac", "\u30bf\u30ef\u30fc", "\u3078", "ABC", "\u793e", "\uff8e\uff9f\uff7d\uff84"]
    hand = Hand("".join(words))
    ends = [hand.go("right", far=True) for _ in words]
    assert ends == [sum(map(len, words[: i + 1])) for i in range(len(words))]
    assert [hand.go("left", far=True) for _ in words] == [0, *ends][-2::-1]


def test_a_double_click_selects_whole_characters() -> None:
    """A part of a family is another picture."""
    assert clusters.word_at(f"a {FAMILY} b", 2) == (2, 2 + len(FAMILY))


def test_the_column_is_remembered_over_short_lines() -> None:
    hand = Hand(POEM, cursor=15)
    assert [hand.go("down") for _ in range(3)] == [36, 40, 56]
    assert [hand.go("up") for _ in range(3)] == [40, 36, 15]
    hand.go("down")
    hand.go("down")
    hand.go("right")
    assert hand.go("up") == 40, "another key forgets it"
    assert hand.go("up") == 21


def test_up_and_down_go_to_the_ends_of_the_text() -> None:
    hand = Hand(POEM, cursor=5)
    assert hand.go("up") == 0
    hand = Hand(POEM, cursor=len(POEM) - 3)
    assert hand.go("down") == len(POEM)
    hand = Hand("word " * 40)
    assert hand.go("page down", rows=5) == 100
    assert hand.go("page up", rows=4) == 20
    assert hand.go("page up", rows=4) == 0


def test_home_and_end_stay_in_the_line_that_is_seen() -> None:
    hand = Hand("Shall I compare thee to a summer's day", cursor=3)
    assert hand.layout.count > 1
    end = hand.go("end")
    assert hand.layout.line_of(end) == 0
    assert hand.go("home") == 0
    assert hand.go("end", far=True) == 38
    assert hand.go("home", far=True) == 0
    assert hand.go("down", far=True) == 38


def test_shift_selects_and_an_arrow_ends_the_selection_at_its_side() -> None:
    hand = Hand(POEM, cursor=6)
    hand.go("right", extend=True)
    hand.go("right", extend=True, far=True)
    assert hand.selected == (6, 15)
    assert hand.go("left") == 6
    hand.go("down", extend=True)
    assert hand.selected == (6, 27)
    assert hand.go("right") == 27


def test_paragraphs() -> None:
    hand = Hand(POEM, cursor=5)
    assert [hand.go("down", far=True) for _ in range(4)] == [21, 40, 41, len(POEM)]
    assert [hand.go("up", far=True) for _ in range(4)] == [41, 40, 21, 0]


def test_erasing() -> None:
    text = f"one two{FAMILY}"
    assert erase(text, (len(text), len(text)), forward=False) == Edit(7, len(text), "", "deleted")
    assert erase(text, (7, 7), forward=True) == Edit(7, len(text), "", "deleted")
    assert erase(text, (7, 7), forward=False, far=True) == Edit(4, 7, "", "deleted")
    assert erase(text, (0, 0), forward=True, far=True) == Edit(0, 3, "", "deleted")
    assert erase(text, (5, 2), forward=True) == Edit(2, 5, "", "deleted")
    assert erase(text, (0, 0), forward=False) is None
    assert erase(text, (len(text), len(text)), forward=True) is None
    assert put((5, 2), "x", "typed") == Edit(2, 5, "x", "typed")


def test_clicks_and_drags() -> None:
    layout, hands = laid(POEM, 20), Hands()
    assert press(layout, hands, (0, 0), 9) == Select(9, 9)
    assert drag(layout, hands, 12) == Select(9, 12)
    assert drag(layout, hands, 3) == Select(9, 3)
    assert press(layout, hands, (9, 3), 12, extend=True) == Select(9, 12)
    assert press(layout, hands, (0, 0), 9, clicks=2) == Select(8, 15)
    assert drag(layout, hands, 18) == Select(8, 20), "in whole words"
    assert drag(layout, hands, 2) == Select(15, 0)
    assert press(layout, hands, (0, 0), 9, clicks=3) == Select(0, 21)
    assert drag(layout, hands, 30) == Select(0, 40)
    assert press(layout, hands, (0, 0), 20, clicks=2) == Select(20, 20), "nothing is selected behind a line"


@given(texts, st.lists(st.tuples(st.sampled_from(get_args(Way)), st.booleans(), st.booleans()), max_size=20))
def test_the_caret_is_never_inside_a_character(text: str, keys: list[tuple[Way, bool, bool]]) -> None:
    hand = Hand(text, width=7.0)
    boundaries = {0, len(text)}.union(found.end() for found in regex.finditer(r"\X", text))
    for way, extend, far in keys:
        before = hand.cursor
        hand.go(way, extend=extend, far=far)
        assert hand.cursor in boundaries
        if way in {"right", "down", "page down", "end"} and (extend or far):
            assert hand.cursor >= before
        if not extend:
            assert hand.selected[0] == hand.selected[1]
        for forward in (False, True):
            edit = erase(text, (hand.cursor, hand.cursor), forward=forward, far=far)
            assert edit is None or {edit.start, edit.end} <= boundaries


@given(texts, st.floats(0, 1))
def test_words_and_clusters_hold_a_position(text: str, share: float) -> None:
    position = round(share * len(text))
    found = [match.span() for match in regex.finditer(r"\X", text)]
    within = next((span for span in found if span[0] < position < span[1]), None)
    assert clusters.is_boundary(text, position) == (within is None)
    assert clusters.snap(text, position) == (within[0] if within else position)
    assert clusters.before(text, position) == max((s for s, _ in found if s < position), default=0)
    assert clusters.after(text, position) == min((e for _, e in found if e > position), default=len(text))
    start, end = clusters.word_at(text, position)
    assert start <= position <= end or text[start - 1 : start] == "\n"
