"""Tokens of a text and their log-probabilities -> its words and theirs.

A word is what stands between whitespace: space, tab, line feed, vertical tab, form feed, carriage return. Punctuation
belongs to the word that it touches. Whitespace belongs to the word after it, as it does in the tokens, and whitespace
at a text's end to none.

GPT-2's tokens tell where a word begins and not where it ends: the product of their probabilities is that of "a text
that goes on with these characters", and over all words it sums to more than 1. What is lacking is that the word ends
there, which the next token tells. With B the tokens that begin a word or end the text, the probability of a word is

    p(tokens) * p(next is in B | text up to the word's end) / p(next is in B | text before the word)

- T. Pimentel, C. Meister: How to Compute the Probability of a Word. EMNLP 2024, https://arxiv.org/abs/2406.14561
- B.-D. Oh, W. Schuler: Leading Whitespaces of Language Models' Subword Vocabulary Pose a Confound for Calculating Word
  Probabilities. EMNLP 2024, https://arxiv.org/abs/2406.10851

Three cases have another factor (docs/scoring.md says why): the first word of a text; a token that ends in whitespace,
after which the word is certainly over; and the rest of a word whose beginning stands in the context.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence as Many
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BadRequest

Place: TypeAlias = Literal["start", "inside", "between"]
"""Where a text is: at its start, inside a word (which may be over), or between two words."""
Beginning: TypeAlias = Literal["any", "blank", "solid"]
"""What is given of a word's first token: nothing, that it begins with whitespace or that it does not."""

WORD = re.compile(rb"[^ \t\n\v\f\r]+")
"""No other whitespace parts words: the bytes of such a character may lie in several tokens, and none is it."""
NO_BREAK = "\u00a0".encode()
"""No-break spaces are no word by themselves: GPT-2 has tokens of such and spaces. Between letters they part nothing."""


class Boundaries:
    """What the tokens of a vocabulary say about words. Made once for a tokenizer."""

    def __init__(self, pieces: Many[bytes], ends: Iterable[int]) -> None:
        """Take the bytes of each token within a text, and the tokens at which texts begin and end."""
        self._places: list[Place] = ["between" if piece[-1:].isspace() else "inside" for piece in pieces]
        """Where a text is after each token."""
        self.mask: NDArray[np.bool_] = np.fromiter((piece[:1].isspace() for piece in pieces), np.bool_, len(pieces))
        """Tokens that begin a word, or end the text: those after which nothing more belongs to a word before them."""
        self.ends = frozenset(ends)
        for token in self.ends:
            self._places[token] = "start"
            self.mask[token] = True
        self.begins: list[bool] = self.mask.tolist()
        """The same, quicker to ask for one."""
        self.members = self.mask.astype(np.float32)
        """The same as 1 and 0."""

    def after(self, ids: Many[int]) -> Place:
        """Return where a text is after these tokens."""
        return self._places[ids[-1]] if ids else "start"


@dataclass(frozen=True)
class Word:
    """A word of a text, and what is certain of its probability before the model is asked."""

    begin: int
    """Its place in the text, in characters."""
    end: int
    first: int
    """Its first token, or that of the whitespace before it."""
    last: int
    """The token after its last one."""
    begins: Beginning
    """What is taken as given of its first token."""
    ends: bool
    """Whether it is over with its last token, which ends in whitespace; else the next token tells."""


def find(text: str, ids: Many[int], offsets: Many[int], boundaries: Boundaries, place: Place = "start") -> list[Word]:
    """Return the words of a text that begins at a place; `offsets` are its tokens', in bytes, and the last one's end.

    Raises: BadRequest if its tokens are not parted where its words are.
    """
    data = text.encode()
    characters = _characters(data)
    found: list[Word] = []
    first = 0
    for part, until, after in _parts(ids, offsets, boundaries):
        for begin, end in _spans(data, part, until):
            last = bisect_left(offsets, end)
            if not _fits(ids[first:last], offsets[first:last], begin, boundaries, place):
                raise BadRequest(_different(data[begin:end].decode(), characters[begin]))
            begins = _beginning(ids[first], boundaries, place)
            ends = offsets[last] > end
            found.append(Word(characters[begin], characters[end], first, last, begins, ends))
            first, place = last, "between" if ends else "inside"
        first, place = after, "start"
    return found


def logprobs(words: Iterable[Word], tokens: Many[float | None], masses: Many[float | None]) -> list[float | None]:
    """Return the natural log-probability of each word; None for one whose tokens have none.

    `tokens` are the log-probabilities of the text's tokens. `masses` are the logs of the probability that the tokens of
    Boundaries.mask have together: at the place of each token, and at the place after the last.
    """
    return [_logprob(word, tokens, masses) for word in words]


def _logprob(word: Word, tokens: Many[float | None], masses: Many[float | None]) -> float | None:
    parts = [*tokens[word.first : word.last], 0.0 if word.ends else masses[word.last]]
    known = [part for part in parts if part is not None]
    mass, least = masses[word.first], tokens[word.first]
    if len(known) < len(parts) or mass is None or least is None:
        return None
    before = 0.0
    if word.begins == "blank":
        before = mass
    elif word.begins == "solid":  # as much as its first token has, where rounding leaves less
        before = max(least, math.log1p(-math.exp(mass))) if mass < 0 else least
    return min(0.0, math.fsum(known) - before)  # sum()'s last bits depend on Python's version


def _parts(ids: Many[int], offsets: Many[int], boundaries: Boundaries) -> Iterator[tuple[int, int, int]]:
    """Yield where each part of the text begins and ends, in bytes, and the token after the one that ends it."""
    begin = 0
    for i, token in enumerate(ids):
        if token in boundaries.ends:
            yield begin, offsets[i], i + 1
            begin = offsets[i + 1]
    yield begin, offsets[-1], len(ids)


def _fits(ids: Many[int], offsets: Many[int], begin: int, boundaries: Boundaries, before: Place) -> bool:
    """Return whether these tokens are those of one word and of the whitespace before it, after this."""
    if not ids or begin < offsets[0]:  # the token before has some of it
        return False
    if before == "inside" and begin > offsets[0] and not boundaries.begins[ids[0]]:
        return False
    return not any(boundaries.begins[token] and offsets[i] > begin for i, token in enumerate(ids))


def _beginning(token: int, boundaries: Boundaries, before: Place) -> Beginning:
    """Return what is given of the first token of a word, after this."""
    if before == "between":
        return "any"
    if boundaries.begins[token]:
        return "blank"
    return "solid" if before == "start" else "any"


def _characters(data: bytes) -> list[int]:
    """Return the number of characters before each byte of a text, and before its end."""
    begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    counts: list[int] = np.cumsum(begins).tolist()
    return [0, *counts]


def _spans(data: bytes, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield where the words of a part of a text are, in bytes."""
    for found in WORD.finditer(data, begin, end):
        if found[0].strip(NO_BREAK):
            yield found.span()


def _different(word: str, at: int) -> str:
    """Return what to say of a word that has no tokens of its own."""
    return (
        f"the tokens of this model are not parted where its words are, as at character {at}, {word!r:.40}; ask for "
        'unit="token"'
    )
