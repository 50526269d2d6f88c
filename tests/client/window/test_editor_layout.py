"""Texts in lines: what every line keeps to, and that an edit gives the same lines as laying everything out."""

from __future__ import annotations

import random

import numpy as np
import pytest
import regex
from hypothesis import example, given, strategies as st

from client.window.editor import clusters
from client.window.editor.layout import NEWLINE, Advances, Codes, Layout, difference

PIECES = (
    "a", "W", "word", "-", "\u2014", " ", "   ", "\t", "\n", "e\u0301", "\u0301", "\u4e2d\u6587", "\u3002", "\u300c",
    "\U0001f469\u200d\U0001f680", "\U0001f1e9\U0001f1ea", "\u200d", "\u00df", "\ud55c", "\u0e01\u0e33", "5",
)  # fmt: skip
texts = st.lists(st.sampled_from(PIECES), max_size=30).map("".join)
widths = st.sampled_from([1.0, 4.0, 7.0, 20.0])


def measure(codes: Codes) -> Advances:
    """Letters are 1 wide, W is 3, ideographs are 2, accents and line ends nothing."""
    advances = np.ones(len(codes))
    advances[codes == ord("W")] = 3
    advances[(codes >= 0x2E80) & (codes < 0xFF00)] = 2
    advances[((codes >= 0x300) & (codes < 0x370)) | (codes == 0x200D) | (codes == NEWLINE)] = 0
    return advances


def laid(text: str, width: float) -> Layout:
    layout = Layout(measure)
    layout.lay(text, width)
    return layout


def codes(text: str) -> Codes:
    return np.array([ord(c) for c in text], np.uint32)


def lines(layout: Layout) -> list[str]:
    return [layout.text[slice(*layout.span(i))] for i in range(layout.count)]


def test_lines_end_between_words() -> None:
    assert lines(laid("the quick brown fox", 10)) == ["the quick ", "brown fox"]
    assert lines(laid("the quick     brown", 9)) == ["the quick     ", "brown"], "spaces hang over the edge"
    assert lines(laid("well-known", 6)) == ["well-", "known"]
    assert lines(laid("a -5 b", 3)) == ["a ", "-5 ", "b"], "a minus stays with its number"
    assert lines(laid("abcdefgh", 3)) == ["abc", "def", "gh"]
    assert lines(laid("\u4e2d\u6587\u4e2d\u3002\u4e2d", 6)) == ["\u4e2d\u6587", "\u4e2d\u3002\u4e2d"]
    assert lines(laid("one\n\ntwo\n", 10)) == ["one", "", "two", ""]
    assert lines(laid("", 10)) == [""]


@given(texts, widths)
@example("W a" * 20, 4.0)
@example(" WW", 4.0)
def test_what_every_line_keeps_to(text: str, width: float) -> None:
    layout = laid(text, width)
    assert "".join(lines(layout)).replace("\n", "") == text.replace("\n", "")
    boundaries = {0, len(text)}.union(found.end() for found in regex.finditer(r"\X", text))
    assert {int(start) for start in layout.starts} <= boundaries
    assert lines(layout).count("") >= text.count("\n\n")
    for line, content in enumerate(lines(layout)):
        seen = content.rstrip(" \t")
        assert measure(codes(seen)).sum() <= width or len(regex.findall(r"\X", seen)) == 1
        if line + 1 < layout.count and layout.span(line)[1] == layout.starts[line + 1]:
            word = regex.compile(r"\S*").match(text, int(layout.starts[line + 1]))[0]
            both = codes(content + word)
            assert not word or max(both) > 0x2E80 or measure(both).sum() > width, "the next word would have fitted"


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1), texts), min_size=1, max_size=6), texts, widths)
def test_an_edit_gives_the_lines_of_the_whole(edits: list[tuple[float, float, str]], text: str, width: float) -> None:
    layout = laid(text * 8, width)
    for a, b, put in edits:
        start, end = sorted((round(a * len(layout.text)), round(b * len(layout.text))))
        for line in range(layout.count):
            layout.positions(line)  # which stay known where the edit changes nothing
        layout.lay(layout.text[:start] + put + layout.text[end:], width)
        whole = laid(layout.text, width)
        assert layout.starts.tolist() == whole.starts.tolist()
        for line in range(layout.count):
            assert layout.positions(line).tolist() == whole.positions(line).tolist()


def test_an_edit_of_a_long_text_lays_out_a_few_lines() -> None:
    asked = list[int]()

    def counted(codes: Codes) -> Advances:
        asked.append(len(codes))
        return measure(codes)

    layout = Layout(counted)
    words = random.Random(1).choices(("thou", "art", "more", "lovely", "and", "temperate"), k=40_000)
    for text in (" ".join(words), "Shall I compare thee\n" * 10_000):
        layout.lay(text, 70)
        asked.clear()
        for place in (0, 100_000, len(text) - 1):
            layout.lay(text[:place] + "x" + text[place:], 70)
            layout.lay(text, 70)
        assert sum(asked) < 30_000, "not the whole text"


def test_text_that_is_written_below_measures_no_line_in_sight_again() -> None:
    asked = list[int]()

    def counted(codes: Codes) -> Advances:
        asked.append(len(codes))
        return measure(codes)

    layout = Layout(counted)
    for before, after in (("Shall I compare thee\n" * 40, ""), ("", "\nThou art more lovely" * 40)):
        text = before
        layout.lay(text + after, 70)
        for word in ("Rough ", "winds ", "do ", "shake\n", "the ", "darling ", "buds ") * 3:
            for line in range(layout.count):
                layout.positions(line)
            asked.clear()
            text += word
            layout.lay(text + after, 70)
            for line in range(layout.count):
                layout.positions(line)
            # What the wrapping looks at, the line that is written, and one after it.
            assert len(asked) <= 4, "each line was measured again"


@pytest.mark.parametrize("text", ["\u0301" * 9000, "a" * 9000, " " * 9000, "\U0001f1e9" * 701])
def test_a_line_that_has_no_end_is_broken(text: str) -> None:
    layout = laid(text, 70)
    assert lines(layout)[0]
    assert "".join(lines(layout)) == text
    layout.lay(text[:500] + "x" + text[500:], 70)
    assert "".join(lines(layout)) == layout.text


@given(texts, widths)
def test_places_are_found_again(text: str, width: float) -> None:
    layout = laid(text, width)
    for line in range(layout.count):
        start = layout.span(line)[0]
        for x in range(int(width) + 2):
            offset = layout.offset_at(line, x)
            assert start <= offset <= layout.last(line)
            assert clusters.is_boundary(text, offset)
            assert layout.line_of(offset) == line
            back = layout.locate(offset)
            assert back[0] == line
            nearest = layout.offset_at(line, back[1])
            assert layout.locate(nearest) == back
    assert laid(text, width).offset_at(layout.count + 5, 1e9) <= len(text)


@given(texts, texts)
def test_the_difference_of_two_texts(old: str, new: str) -> None:
    found = difference(old, new)
    assert old[: found.start] + new[found.start : found.new_end] + old[found.old_end :] == new
    assert found.start <= min(found.old_end, found.new_end)


@pytest.mark.parametrize("text", ["\u4e2d\u6587", "\u0421\u0442\u0438\u0445\u0438 ", "\ud55c\uad6d\uc5b4 "])
def test_scripts_whose_letters_join_nothing_are_not_looked_through(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look for the beginning of a cluster costs more than all else in a line."""
    monkeypatch.setattr(clusters, "_around", lambda *_: pytest.fail("looked"))
    assert "".join(lines(laid(text * 500, 20))) == text * 500
