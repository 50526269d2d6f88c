"""What else a model could have written: the tokens of continuations with the likeliest others at each place.

They take far more memory than their texts, so they are kept apart from them, up to a number of bytes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from client.window.document import clean
from protocol import messages as m

MAX_BYTES = 48 << 20
RARE = 0.01
KEY = 4
"""Number of characters by which a continuation is looked for."""
TOKEN_BYTES, ALTERNATIVE_BYTES = 200, 190
"""Memory of a token's own objects, and of those of each alternative."""
PART = "\ufffd"
"""Stands in a token's text for a part of a character."""
MAX_CHARACTERS = 4
"""Most characters of which a run of such tokens, for each of them, can be the parts."""


@dataclass(frozen=True, slots=True)
class Written:
    """Tokens of a continuation, in the order in which they were written."""

    ids: list[int]
    tokens: list[m.TokenLogprobs]
    """One for each of `ids`."""
    spaces: int = 0
    """Number of leading spaces that the page had already."""

    @property
    def bytes(self) -> int:
        texts = (len(text) for token in self.tokens for text in (token.text, *(other.text for other in token.top)))
        return sum(texts) + sum(TOKEN_BYTES + ALTERNATIVE_BYTES * len(token.top) for token in self.tokens)

    @property
    def text(self) -> str:
        """Its text on the page."""
        text = "".join(clean(token.text) for token in self.tokens)
        return text[min(self.spaces, len(text) - len(text.lstrip(" "))) :]


class _Kept(NamedTuple):
    written: Written
    text: str
    """Empty where there are parts of characters in it."""
    begins: list[int]
    """Where in the text each token begins, and its end."""
    bytes: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a continuation where the page shows them."""

    written: Written
    places: list[int]
    """Where each begins, as far as they are there, and where the last one ends."""

    @property
    def start(self) -> int:
        return self.places[0]

    def index_at(self, offset: int) -> int | None:
        """Return the number of the token that has the character at an offset."""
        index = bisect_right(self.places, offset) - 1
        return index if 0 <= index < len(self.places) - 1 else None

    def shades(self, first: int, last: int) -> list[tuple[int, int, float]]:
        """Return those between two offsets as (start, end, how unlikely it was: 0 to 1, for 1 in 100 and less)."""
        begin = max(0, bisect_right(self.places, first) - 1)
        end = min(len(self.places) - 1, bisect_left(self.places, last))
        spans = zip(
            self.places[begin:end], self.places[begin + 1 : end + 1], self.written.tokens[begin:end], strict=True
        )
        return [(start, stop, unlikely(token.logprob)) for start, stop, token in spans if stop > start]


class Alternatives:
    """Tokens of the newest continuations. They are found by their text, so that they are there wherever it is."""

    def __init__(self) -> None:
        self._kept: deque[_Kept] = deque()
        self._bytes = 0
        self._by_beginning: dict[str, deque[_Kept]] = {}
        self._found: dict[tuple[int, int], list[Tokens]] = {}
        self._version = -1
        """Version of the text in which those were found."""

    def keep(self, written: Written) -> None:
        """Keep the tokens of a continuation; the oldest are forgotten where there are too many."""
        if not written.tokens:
            return
        self._found.clear()
        text = written.text
        text = "" if PART in text else text
        kept = _Kept(written, text, found(text, 0, len(text), written), written.bytes)
        self._kept.append(kept)
        self._by_beginning.setdefault(text[:KEY], deque()).append(kept)
        self._bytes += kept.bytes
        while self._bytes > MAX_BYTES and len(self._kept) > 1:
            oldest = self._kept.popleft()
            self._bytes -= oldest.bytes
            same = self._by_beginning[oldest.text[:KEY]]
            same.popleft()
            if not same:
                del self._by_beginning[oldest.text[:KEY]]

    def within(self, text: str, version: int, start: int, end: int) -> list[Tokens]:
        """Return the tokens of a marked part of the text, continuation by continuation, as far as they are kept. Of an
        edited one those before the edit are there. `version` changes with the text.
        """
        if version != self._version:
            self._found.clear()
            self._version = version
        tokens = self._found.get((start, end))
        if tokens is None:
            tokens = []
            at = start
            while at < end and (next_ := self._best(text, at, end)):
                tokens.append(next_)
                at = next_.places[-1]
            self._found[start, end] = tokens
        return tokens

    def _best(self, text: str, start: int, end: int) -> Tokens | None:
        """Return the tokens of the continuation of which most is there; of several the newest."""
        best = None
        same = self._by_beginning.get(text[start : min(end, start + KEY)], ())
        for written, own, begins, _ in [*self._by_beginning.get("", ()), *same]:
            if own and start + len(own) <= end and text.startswith(own, start):
                places = [start + begin for begin in begins]
            else:
                places = found(text, start, end, written)
            if places[-1] > start and (best is None or len(places) >= len(best.places)):
                best = Tokens(written, places)
        return best


def found(text: str, start: int, end: int, written: Written) -> list[int]:
    """Return where each token begins, as far as the text from start to end shows them, and where the last one ends."""
    begins, position = list[int](), start
    spaces, parts = written.spaces, 0
    # `parts`: tokens before this one that are parts of characters.
    for token in written.tokens:
        own = clean(token.text)
        dropped = min(spaces, len(own) - len(own.lstrip(" ")))
        spaces = 0 if own.strip(" ") else spaces - dropped
        own = own[dropped:]
        if PART in own:
            begins.append(position)
            parts += 1
            continue
        at = text.find(own, position, min(end, position + len(own) + MAX_CHARACTERS * parts))
        if at < 0:
            break
        begins.append(at)
        position, parts = at + len(own), 0
    return [*begins, min(end, position + MAX_CHARACTERS * parts)]


def unlikely(logprob: float) -> float:
    """Return how much of a surprise a token was: 0 for a certain one, 1 for one that had a chance of RARE or less."""
    return min(1.0, -math.log(max(RARE, probability(logprob))) / -math.log(RARE))


def probability(logprob: float) -> float:
    """Return the probability of a token, whatever a server says of it."""
    return math.exp(min(0.0, logprob)) if math.isfinite(logprob) else 0.0
