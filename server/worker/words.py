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

import itertools
import math
import re
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

BLANKS = b" \t\n\v\f\r"
"""What parts words. No other whitespace: the bytes of such a character may lie in several tokens, and none is it."""
BLANK_FIRST, BLANK_LAST = 1, 2
SOLID, PARTED = 4, 8
END = 16
PARTS = re.compile(rb"[^ \t\n\v\f\r][ \t\n\v\f\r]+[^ \t\n\v\f\r]")
WORD = re.compile(rb"[^ \t\n\v\f\r]+")


class Boundaries:
    """What the tokens of a vocabulary say about words. Made once for a tokenizer."""

    def __init__(self, pieces: Many[bytes], ends: Iterable[int]) -> None:
        """Take the bytes of each token within a text, and the tokens at which texts begin and end."""
        kinds = np.fromiter(map(_kind, pieces), np.uint8, len(pieces))
        kinds[list(ends)] = END
        self.kinds: list[int] = kinds.tolist()
        self.mask: NDArray[np.bool_] = (kinds & (BLANK_FIRST | END)) != 0  # [vocabulary]
        """Tokens that begin a word, or end the text: those after which nothing more belongs to a word before them."""
        self.members = self.mask.astype(np.float32)
        """The same as 1 and 0."""

    def after(self, ids: Many[int]) -> Place:
        """Return where a text is after these tokens."""
        kind = next((kind for token in reversed(ids) if (kind := self.kinds[token])), END)
        return _place(kind)


def _kind(piece: bytes) -> int:
    solid = piece.strip(BLANKS)
    kind = BLANK_FIRST * (piece[:1] != solid[:1]) | BLANK_LAST * (piece[-1:] != solid[-1:]) | SOLID * bool(solid)
    return kind | PARTED * (PARTS.search(piece) is not None)


def _place(kind: int) -> Place:
    """Return where a text is after a token of this kind."""
    if kind & END:
        return "start"
    return "between" if kind & BLANK_LAST else "inside"


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
    found = []
    for first, last, begins, ends in _runs(ids, boundaries, place):
        part = data[offsets[first] : offsets[last]]
        begin = offsets[first] + len(part) - len(part.lstrip(BLANKS))
        end = offsets[last] - len(part) + len(part.rstrip(BLANKS))
        found.append(Word(characters[begin], characters[end], first, last, begins, ends))
    cuts = [(offsets[i], offsets[i + 1]) for i, token in enumerate(ids) if boundaries.kinds[token] & END]
    own = [(characters[begin], characters[end]) for begin, end in _spans(data, cuts)]
    if own != [(word.begin, word.end) for word in found]:
        raise BadRequest(_different(text, own, found))
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
    return min(0.0, sum(known) - before)


def _runs(ids: Many[int], boundaries: Boundaries, place: Place) -> Iterator[tuple[int, int, Beginning, bool]]:
    """Yield the tokens of each word, the first and the one after the last, what is given of it, whether it is over."""
    first, begins = 0, _beginning(boundaries, ids[:1], place)
    solid = False
    for i, token in enumerate(ids):
        kind = boundaries.kinds[token]
        if kind & PARTED:
            raise BadRequest(
                f'token {token} of it spans several words, which have no probability of their own; ask for unit="token"'
            )
        if solid and boundaries.mask[token]:
            yield first, i, begins, False
            solid = False
            first, begins = i, _beginning(boundaries, [token], "inside")
        if not kind:
            continue
        place = _place(kind)
        solid = solid or bool(kind & SOLID)
        over = solid and place == "between"
        if over:
            yield first, i + 1, begins, True
        if over or place == "start":
            solid = False
            first, begins = i + 1, _beginning(boundaries, ids[i + 1 : i + 2], place)
    if solid:
        yield first, len(ids), begins, False


def _beginning(boundaries: Boundaries, ids: Many[int], before: Place) -> Beginning:
    """Return what is given of the first token of a word, after this."""
    if before == "between" or not ids:
        return "any"
    if boundaries.mask[ids[0]]:
        return "blank"
    return "solid" if before == "start" else "any"


def _characters(data: bytes) -> list[int]:
    """Return the number of characters before each byte of a text, and before its end."""
    begins = (np.frombuffer(data, np.uint8) & 0xC0) != 0x80
    counts: list[int] = np.cumsum(begins).tolist()
    return [0, *counts]


def _spans(data: bytes, cuts: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield where the words of a text are by its whitespace, in bytes; what is cut out parts them, too."""
    begin = 0
    for until, after in [*cuts, (len(data), len(data))]:
        yield from (found.span() for found in WORD.finditer(data, begin, until))
        begin = after


def _different(text: str, own: Many[tuple[int, int]], found: Many[Word]) -> str:
    """Return what to say of a text whose tokens are not parted as its words are."""
    told = [(word.begin, word.end) for word in found]
    pairs = itertools.zip_longest(own, told)
    begin, end = next(one or other or (0, 0) for one, other in pairs if one != other)
    return (
        "the tokens of this model are not parted where its words are, as at character "
        f'{begin}, {text[begin:end]!r:.40}; ask for unit="token"'
    )
