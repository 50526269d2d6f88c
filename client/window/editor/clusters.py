"""Where a caret may stand in a text: between characters as people see them, and at the ends of words.

A character as people see it is a grapheme cluster: an accent belongs to its letter, a flag is one. Only a window around
the position is looked at, so that a line of any length costs the same.
"""

from __future__ import annotations

import regex

WINDOW = 256
"""Number of code points before a position among which the beginning of its cluster is looked for."""
SIMPLE = "\u0300"
"""Below this no code point joins the one before it."""
CLUSTER = regex.compile(r"\X")
MARK = r"[\u30fc\u3099\u309a\uff70\uff9e\uff9f]"
"""What stands in words of Hiragana and of Katakana alike: long vowels, and the marks of voiced sounds."""
UNSPACED = rf"\p{{Han}}+|(?:\p{{Hiragana}}{MARK}*)+|(?:\p{{Katakana}}{MARK}*)+"
"""Words of scripts without spaces, as far as a change of script tells them apart."""
WORD = rf"(?:{UNSPACED}|(?:(?!\p{{Han}}|\p{{Hiragana}}|\p{{Katakana}})\w)+(?:['\u2019]\w+)*)"
NEXT = regex.compile(rf"\W*{WORD}")
PREVIOUS = regex.compile(rf"(?r){WORD}\W*")
RUN = regex.compile(rf"{WORD}|[^\w\s]+|[^\S\n]+|\n")


def is_boundary(text: str, position: int) -> bool:
    """Return True unless the position is inside a cluster."""
    if position <= 0 or position >= len(text):
        return True
    if text[position] < SIMPLE and text[position - 1] < SIMPLE:
        return True
    return _parts(text[position - 1], text[position]) or snap(text, position) == position


def _parts(before: str, after: str) -> bool:
    """Return True if a cluster begins between two code points whatever stands before them."""
    return _ends(CLUSTER.match(before + after)) == 1 and _ends(CLUSTER.match("a" + before)) == 1


def _ends(found: regex.Match[str] | None) -> int:
    return int(found.end()) if found else 1


def snap(text: str, position: int) -> int:
    """Return the last boundary at or before a position."""
    position = max(0, min(position, len(text)))
    if position in {0, len(text)} or (text[position] < SIMPLE and text[position - 1] < SIMPLE):
        return position
    return _around(text, position)[0]


def before(text: str, position: int) -> int:
    """Return the boundary before a position; 0 at the beginning."""
    return snap(text, position - 1) if position > 0 else 0


def after(text: str, position: int) -> int:
    """Return the boundary after a position; the text's end at its end."""
    if position >= len(text):
        return len(text)
    following = position + 1
    if following == len(text) or (text[following] < SIMPLE and text[position] < SIMPLE):
        return following
    start, end = _around(text, following)
    return following if start == following else end


def _around(text: str, position: int) -> tuple[int, int]:
    """Return start and end of the cluster that begins before or at a position and ends after it."""
    first = max(0, (position - WINDOW) // WINDOW * WINDOW)
    first = max(first, text.rfind("\n", first, position) + 1)
    while first < position:
        found = CLUSTER.match(text, first, position + WINDOW)
        end = found.end() if found else first + 1
        if end > position:
            return first, end
        first = end
    found = CLUSTER.match(text, position, position + WINDOW)
    return position, found.end() if found else position + 1


def word_before(text: str, position: int) -> int:
    """Return where the word before a position begins."""
    found = PREVIOUS.search(text, 0, position)
    start = int(found.start()) if found else 0
    return snap(text, start) if start < position else before(text, position)


def word_after(text: str, position: int) -> int:
    """Return where the word after a position ends."""
    found = NEXT.search(text, position)
    end = int(found.end()) if found else len(text)
    return end if is_boundary(text, end) else after(text, end)


def word_at(text: str, position: int) -> tuple[int, int]:
    """Return start and end of the word, the punctuation or the spaces that a position is in."""
    line = text.rfind("\n", 0, position) + 1
    first = max(line, position - 16 * WINDOW)
    for found in RUN.finditer(text, first):
        if found.end() > position or found.end() == len(text):
            start, end = snap(text, int(found.start())), int(found.end())
            end = end if is_boundary(text, end) else after(text, end)
            return (start, end) if text[start] != "\n" else (start, start)
    return position, position


def paragraph_at(text: str, position: int) -> tuple[int, int]:
    """Return start and end of the paragraph that a position is in, with its line end."""
    end = text.find("\n", position)
    return text.rfind("\n", 0, position) + 1, len(text) if end < 0 else end + 1
