"""Guesses at the next tokens, which the engine verifies together with the token that is due: several tokens in a step.

A step costs hardly more for a few tokens than for one, since its weights are read once. The tokens are chosen one
after the other by the sequence's own sampler, with the same random numbers as without guesses, and a guess that
differs from the token chosen is dropped with all after it: the text is, to the last token, the one without guessing.
(For a guesser without randomness this is the rule of speculative sampling, Leviathan et al. 2023: a guess is accepted
with the probability that the model gives it, and a token drawn instead comes from the rest of the distribution.)
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

NGRAMS = (3, 2)
"""Lengths of the n-grams that are looked up, the longest first."""
PROBE = 32
"""Number of steps without a guess after which one is tried all the same: the text may have begun to repeat itself."""
WEIGHT = 0.15
"""Weight of the latest guess in the rate of acceptance."""


class Guesser(Protocol):
    """Source of guesses: prompt lookup, or a smaller model."""

    def guess(self, ids: Many[int], most: int) -> list[int]:
        """Return at most `most` tokens that may follow `ids`. Each call has the tokens of the last one, and more."""
        ...


class PromptLookup:
    """Guesses what came after the last few tokens where they occurred earlier in the prompt or text (Saxena 2023)."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        """N-gram -> where its latest continuation begins."""
        self._noted = 0

    def guess(self, ids: Many[int], most: int) -> list[int]:
        end = len(ids)
        for position in range(self._noted, end):  # an n-gram that ends at `end` has no continuation yet
            for n in NGRAMS:
                if position >= n:
                    self._after[tuple(ids[position - n : position])] = position
        self._noted = end
        for n in NGRAMS:
            if end >= n and (start := self._after.get(tuple(ids[end - n :]))) is not None:
                return list(ids[start : start + most])
        return []


class Pace:
    """Number of guesses that are worth their cost, by the share of recent ones that were right."""

    def __init__(self) -> None:
        self._rate = 0.5
        self._idle = 0
        self.guessed = self.accepted = 0

    def wanted(self, price: float) -> int:
        """Return the number of guesses that pay where one more costs `price`, as a share of the step (costs.py).

        A further guess pays as long as the probability that all are right exceeds its cost.
        """
        count, chance = 0, self._rate
        while chance > price:
            count += 1
            chance *= self._rate
        if count:
            self._idle = 0
            return count
        self._idle = (self._idle + 1) % PROBE
        return 0 if self._idle else 1

    def learn(self, guessed: int, accepted: int) -> None:
        """Note that `guessed` tokens were tried, of which the first `accepted` were right."""
        self.guessed += guessed
        self.accepted += accepted
        for i in range(min(guessed, accepted + 1)):
            # The rate stays below 1, at which any number of guesses would pay.
            self._rate += WEIGHT * ((i < accepted) * 0.99 - self._rate)
