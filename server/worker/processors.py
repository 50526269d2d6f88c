"""Logits -> logits: changes by a sequence's own history and its request, before a token is chosen.

The arithmetic is that of transformers' logits processors: bias; forbidden tokens (n-grams, bad words, an early end);
and penalties on tokens that have come before, of repetition, presence and frequency. Where the native kernels choose,
they make these changes (kernels/src/sample_body.h), with the same result; which tokens they concern is decided here.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Many

import numpy as np

from protocol.messages import Generate
from server.engines.base import Logits

NEVER = np.float32(-np.inf)
NONE_LEFT = (
    "no token is left that may come: no_repeat_ngram_size, bad_words and min_new_tokens forbid all of the model; "
    "ask for a shorter text, or forbid fewer"
)


def none_left(logits: Logits, request: Generate) -> bool:
    """Return whether a request forbids every token, of which the processed logits are [vocabulary]."""
    forbids = request.no_repeat_ngram_size or request.bad_words or request.min_new_tokens
    return bool(forbids) and bool(np.isneginf(logits).all())


class History:
    """Tokens of a sequence, each once, and how often each has come since the prompt."""

    def __init__(self) -> None:
        self.tokens = array("i")
        self.counts = array("i")
        self._places: dict[int, int] = {}

    def add(self, token: int, times: int) -> None:
        place = self._places.setdefault(token, len(self.tokens))
        if place == len(self.tokens):
            self.tokens.append(token)
            self.counts.append(0)
        self.counts[place] += times

    def penalise(self, logits: Logits, request: Generate) -> None:
        """Change float32 [vocabulary] in place.

        Repetition divides positive and multiplies negative logits (Keskar et al. 2019, CTRL); presence and frequency
        subtract, once and for each time.
        """
        tokens = np.array(self.tokens, np.int64)  # [different tokens], as all that follow
        counts = np.array(self.counts, np.float32)
        values = logits[tokens]
        repetition = np.float32(request.repetition_penalty)
        values = np.where(values > 0, values / repetition, values * repetition)
        values -= np.float32(request.presence_penalty) * (counts > 0)
        logits[tokens] = values - np.float32(request.frequency_penalty) * counts


class Processors:
    """The processors that one request asks for, and what they remember of its tokens."""

    def __init__(self, request: Generate, prompt_tokens: int, ends: Many[int], bad_words: Many[Many[int]]) -> None:
        """Make those of a request; `bad_words` are token sequences that must not come."""
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._noted = 0
        penalised = request.repetition_penalty != 1 or request.presence_penalty or request.frequency_penalty
        self.history = History() if penalised else None
        self._followers: dict[tuple[int, ...], list[int]] = {}
        """N-gram without its last token -> the tokens that came after it."""
        self._never = array("i", (word[0] for word in bad_words if len(word) == 1))
        self._early = self._never + array("i", ends)
        """What must not come, with the ends, while tokens are missing to `min_new_tokens`."""
        self._endings: dict[int, list[tuple[list[int], int]]] = {}
        """Last token but one of a bad word -> the words of which it is one: their beginning and last token."""
        for *beginning, last in bad_words:
            if beginning:
                self._endings.setdefault(beginning[-1], []).append((beginning, last))
        self.bans = bool(request.no_repeat_ngram_size or bad_words or request.min_new_tokens)
        """True if there can be tokens that must not come."""
        self.active = self.bans or bool(request.logit_bias) or self.history is not None

    def apply(self, logits: Logits, ids: Many[int]) -> Logits:
        """Return the processed float32 [vocabulary] for the token after `ids`, prompt and new tokens together."""
        logits = logits.copy()
        self.edit(logits, ids)
        if self.history:
            self.history.penalise(logits, self._request)
        return logits

    def edit(self, logits: Logits, ids: Many[int]) -> None:
        """Do all but the penalties, in float32 [vocabulary] in place."""
        self.note(ids)
        for token, bias in self._request.logit_bias:
            logits[token] += np.float32(bias)
        if self.bans:
            logits[self.banned(ids)] = NEVER

    def banned(self, ids: Many[int]) -> array[int]:
        """Return the tokens that must not come after `ids`, which have been noted."""
        early = len(ids) - self._prompt_tokens < self._request.min_new_tokens
        banned = self._early if early else self._never
        more: list[int] = []
        if (size := self._request.no_repeat_ngram_size) and len(ids) >= size - 1:
            more += self._followers.get(tuple(ids[len(ids) - size + 1 :]), ())
        if ids and self._endings:
            more += (last for start, last in self._endings.get(ids[-1], ()) if list(ids[-len(start) :]) == start)
        return banned + array("i", more) if more else banned

    def note(self, ids: Many[int]) -> None:
        """Note the tokens that came since the last call."""
        if self.history:
            for i in range(self._noted, len(ids)):
                self.history.add(ids[i], int(i >= self._prompt_tokens))
        if size := self._request.no_repeat_ngram_size:
            for end in range(max(self._noted, size - 1), len(ids)):
                self._followers.setdefault(tuple(ids[end - size + 1 : end]), []).append(ids[end])
        self._noted = len(ids)
