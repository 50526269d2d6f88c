"""Logits -> logits: changes by a sequence's own history and its request, before a token is chosen.

The arithmetic is that of transformers' logits processors: bias; forbidden tokens (n-grams, bad words, an early end);
and penalties on tokens that have come before, of repetition, presence and frequency. For tokens that the native
kernels choose, the kernels compute the penalties (kernels/src/sample_body.h), with the same result.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence as Many

import numpy as np

from protocol.messages import Generate
from server.engines.base import Logits

NEVER = np.float32(-np.inf)


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
        self._ends = list(ends)
        self._bad_words = bad_words
        self._noted = 0
        penalised = request.repetition_penalty != 1 or request.presence_penalty or request.frequency_penalty
        self.history = History() if penalised else None
        self._followers: dict[tuple[int, ...], list[int]] = {}
        """N-gram without its last token -> the tokens that came after it."""
        self._edits = bool(request.logit_bias or request.no_repeat_ngram_size or bad_words or request.min_new_tokens)
        self.active = self._edits or self.history is not None

    def apply(self, logits: Logits, ids: Many[int]) -> Logits:
        """Return the processed float32 [vocabulary] for the token after `ids`, prompt and new tokens together."""
        logits = logits.copy()
        self.edit(logits, ids)
        if self.history:
            self.history.penalise(logits, self._request)
        return logits

    def edit(self, logits: Logits, ids: Many[int]) -> None:
        """Do all but the penalties, in float32 [vocabulary] in place."""
        request = self._request
        self._note(ids)
        if not self._edits:
            return
        for token, bias in request.logit_bias:
            logits[token] += np.float32(bias)
        if size := request.no_repeat_ngram_size:
            banned = self._followers.get(tuple(ids[len(ids) - size + 1 :]), []) if len(ids) >= size - 1 else []
            logits[banned] = NEVER
        for word in self._bad_words:
            *beginning, last = word
            if not beginning or list(ids[-len(beginning) :]) == beginning:
                logits[last] = NEVER
        if len(ids) - self._prompt_tokens < request.min_new_tokens:
            logits[self._ends] = NEVER

    def _note(self, ids: Many[int]) -> None:
        """Note the tokens that came since the last call."""
        if self.history:
            for i in range(self._noted, len(ids)):
                self.history.add(ids[i], int(i >= self._prompt_tokens))
        if size := self._request.no_repeat_ngram_size:
            for end in range(max(self._noted, size - 1), len(ids)):
                self._followers.setdefault(tuple(ids[end - size + 1 : end]), []).append(ids[end])
        self._noted = len(ids)
