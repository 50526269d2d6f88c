"""Logits -> logits: what a sequence's own history and its request change before a token is chosen.

Order and arithmetic are those of transformers' logits processors: bias, repetition penalty, (presence and frequency
penalty,) n-grams, bad words, minimum length.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Generate
from server.engines.base import Logits

NEVER = np.float32(-np.inf)


class Processors:
    """The processors that one request asks for, and what they remember of its tokens."""

    def __init__(self, request: Generate, prompt_tokens: int, vocabulary: int, end_of_text: int, bad_words: Many[Many[int]]) -> None:
        """`bad_words` are token sequences that must not come."""
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._end_of_text = end_of_text
        self._bad_words = bad_words
        self._noted = 0
        self._seen = np.zeros(vocabulary, np.bool_) if request.repetition_penalty != 1 else None
        additive = request.presence_penalty or request.frequency_penalty
        self._counts: NDArray[np.int32] | None = np.zeros(vocabulary, np.int32) if additive else None
        self._followers: dict[tuple[int, ...], list[int]] = {}
        """Of each n-gram but its last token: the tokens that came after it."""
        self.active = bool(
            request.logit_bias or self._seen is not None or additive or request.no_repeat_ngram_size or bad_words or request.min_new_tokens
        )

    def apply(self, logits: Logits, ids: Many[int]) -> Logits:
        """Return the processed float32 [vocabulary] for the token that follows `ids`, prompt and new tokens together."""
        request = self._request
        self._note(ids)
        logits = logits.copy()
        for token, bias in request.logit_bias:
            logits[token] += np.float32(bias)
        if self._seen is not None:
            penalise_repetition(logits, np.flatnonzero(self._seen), request.repetition_penalty)
        if self._counts is not None:
            logits -= np.float32(request.presence_penalty) * (self._counts > 0)
            logits -= np.float32(request.frequency_penalty) * self._counts
        if size := request.no_repeat_ngram_size:
            banned = self._followers.get(tuple(ids[len(ids) - size + 1 :]), []) if len(ids) >= size - 1 else []
            logits[banned] = NEVER
        for word in self._bad_words:
            *beginning, last = word
            if not beginning or list(ids[-len(beginning) :]) == beginning:
                logits[last] = NEVER
        if len(ids) - self._prompt_tokens < request.min_new_tokens:
            logits[self._end_of_text] = NEVER
        return logits

    def _note(self, ids: Many[int]) -> None:
        """Take in the tokens that came since the last call."""
        fresh = ids[self._noted :]
        if self._seen is not None:
            self._seen[fresh] = True
        if self._counts is not None:
            np.add.at(self._counts, ids[max(self._noted, self._prompt_tokens) :], 1)
        if size := self._request.no_repeat_ngram_size:
            for end in range(max(self._noted, size - 1), len(ids)):
                self._followers.setdefault(tuple(ids[end - size + 1 : end]), []).append(ids[end])
        self._noted = len(ids)


def penalise_repetition(logits: Logits, seen: NDArray[np.int64], penalty: float) -> None:
    """Divide positive and multiply negative logits of tokens that were there already, in place (Keskar et al. 2019, CTRL)."""
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / np.float32(penalty), values * np.float32(penalty))
