"""Scores of one text, as its windows find them, and what is told of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol import messages as m
from protocol.means import means
from server.engines.base import Judged, Logits
from server.worker import words as words_of
from server.worker.text import Spans
from server.worker.windows import Windows
from server.worker.words import Boundaries, Word


@dataclass(frozen=True)
class Told:
    """What a request wants to be told, and by what it is."""

    top: int
    alternative: Callable[[int, float], m.Alternative]
    """Makes what is told of a possible token."""
    boundaries: Boundaries | None = None
    """Which tokens words begin with, where words are told."""

    @property
    def members(self) -> NDArray[np.float32] | None:
        """1 for tokens that begin a word and 0 for others, [vocabulary], where words are told."""
        return None if self.boundaries is None else self.boundaries.members


@dataclass(frozen=True)
class Piece:
    """A text to score, and the tokens before it."""

    lead: list[int]
    spans: Spans


def find(piece: Piece, boundaries: Boundaries) -> list[Word]:
    """Return the words of a text after its lead. Raises: BadRequest."""
    spans = piece.spans
    return words_of.find(spans.text, spans.ids, spans.offsets, boundaries, boundaries.after(piece.lead))


def spelled(found: Many[Word], text: str, tokens: Many[float | None], masses: Many[float | None]) -> m.Words:
    """Return what is told of words, from the log-probabilities of a text's tokens and the masses of words' beginnings:
    at each token and after the last.
    """
    return m.Words(
        texts=[text[word.begin : word.end] for word in found],
        starts=[word.begin for word in found],
        ends=[word.end for word in found],
        tokens=[word.first for word in found],
        logprobs=words_of.logprobs(found, tokens, masses),
    )


class TextScores:
    """Scores of one text, as its windows find them."""

    def __init__(self, index: int, piece: Piece, windows: Windows, told: Told) -> None:
        """Raises: BadRequest for a text whose words cannot be told."""
        self.index, self.piece = index, piece
        self.told = told
        self.windows = windows
        self.tokens = [*piece.lead, *piece.spans.ids]
        self.left = windows.count
        """Windows that are not done."""
        self.shared = False
        """Whether others have the same lead, which is computed by itself."""
        count = len(piece.spans.ids)
        self._logprobs, self._entropies = np.zeros(count), np.zeros(count)
        self._ranks, self._greedy = np.zeros(count, np.int32), np.zeros(count, np.int32)
        self._masses = np.zeros(count + 1) if told.members is not None else None
        self._top: list[list[m.Alternative]] = [[] for _ in range(count)] if told.top else []
        self._words = find(piece, told.boundaries) if told.boundaries else []
        self.unscored = windows.first - len(piece.lead)
        """1 where nothing stands before the first token."""
        self.sum = 0.0

    @property
    def scored(self) -> int:
        """Number of tokens that have a log-probability."""
        return len(self.piece.spans.ids) - self.unscored

    @property
    def size(self) -> int:
        """Bytes of the tokens that have one."""
        offsets = self.piece.spans.offsets
        return max(1, offsets[-1] - offsets[self.unscored])

    def take(self, at: int, judged: Judged, logits: Logits | None) -> None:
        """Take what was found of the tokens from `at` on, of all tokens; the last may be what follows the text."""
        first = at - len(self.piece.lead)
        count = min(len(judged.logprobs), len(self._logprobs) - first)
        part = slice(first, first + count)
        self._logprobs[part], self._entropies[part] = judged.logprobs[:count], judged.entropies[:count]
        self._ranks[part], self._greedy[part] = judged.ranks[:count], judged.greedy[:count]
        if self._masses is not None and judged.masses is not None:
            self._masses[first : first + len(judged.masses)] = judged.masses
        if self._top and logits is not None:
            for i, row in enumerate(logits[:count]):
                own = self.piece.spans.ids[first + i]
                total = float(row[own]) - float(judged.logprobs[i])
                self._top[first + i] = self._likeliest(row, total, own, float(judged.logprobs[i]))

    def fields(self) -> dict[str, object]:
        """Return what is told of the text, once all windows are done: once, since it is not kept."""
        none, spans = [None] * self.unscored, self.piece.spans
        values = self._logprobs[self.unscored :]
        self.sum = float(values.sum())
        logprobs: list[float | None] = [*none, *values.tolist()]
        words = None
        if self._masses is not None:
            words = spelled(self._words, spans.text, logprobs, [*none, *self._masses[self.unscored :].tolist()])
        top, self._top = self._top, []
        return {
            "ids": spans.ids,
            "offsets": spans.offsets,
            "logprobs": logprobs,
            "ranks": [*none, *self._ranks[self.unscored :].tolist()],
            "entropies": [*none, *self._entropies[self.unscored :].tolist()],
            "greedy": [*none, *self._greedy[self.unscored :].tolist()],
            "top": top,
            "words": words,
            **means(self.sum, self.scored, self.size),
        }

    def _likeliest(self, logits: Logits, total: float, own: int, logprob: float) -> list[m.Alternative]:
        """Return the likeliest tokens, best first, of equal ones that with the lowest number.  # [vocabulary]"""
        count = min(self.told.top, len(logits))
        if count == 1:
            best = logits.argmax(0, keepdims=True)
        else:
            least = np.partition(logits, len(logits) - count)[len(logits) - count]
            best = np.flatnonzero(logits >= least)  # of several that equal the least, all
            best = best[np.argsort(-logits[best], kind="stable")][:count]
        logs = (logits[best].astype(np.float64) - total).tolist()
        pairs = zip(best.tolist(), logs, strict=True)
        return [self.told.alternative(token, logprob if token == own else log) for token, log in pairs]
