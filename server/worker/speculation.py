"""Guesses at the next tokens, which the engine verifies together with the token that is due: several tokens in a step.

A step costs hardly more for a few tokens than for one, since its weights are read once. The tokens are chosen one after the other
by the sequence's own sampler, with the same random numbers as ever, and a guess that is not what was chosen is dropped
with all after it: the text is, to the last token, the one without guessing. (For a guess that is certain this is the rule of
speculative sampling, Leviathan et al. 2023: it is accepted with the probability that the model gives it, and what is
drawn instead of it comes from the rest of the distribution.)
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Protocol

NGRAMS = (3, 2)
"""Lengths of the last tokens that are looked up; the longest that is found counts."""
ROW_COST = 0.15
"""What one more token adds to a step, as a share of a step of one (measured on gpt2 at 8 and 4 bits, 2 cores)."""
PROBE = 32
"""After so many steps without a guess one is tried all the same: the text may have begun to repeat itself."""
WEIGHT = 0.15
"""How much the latest guess counts in the rate of acceptance."""


class Guesser(Protocol):
    """What proposes tokens: prompt lookup, or a smaller model."""

    def guess(self, ids: Many[int], most: int) -> list[int]:
        """Tokens that may follow `ids`, at most `most`. Called with the same tokens and more each time."""
        ...


class PromptLookup:
    """What came after the last few tokens when they stood in the prompt or the text before (Saxena 2023)."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}
        """N-gram -> where its latest continuation begins."""
        self._noted = 0

    def guess(self, ids: Many[int], most: int) -> list[int]:
        end = len(ids)
        for position in range(self._noted, end):  # what ends at the end has no continuation yet
            for n in NGRAMS:
                if position >= n:
                    self._after[tuple(ids[position - n : position])] = position
        self._noted = end
        for n in NGRAMS:
            if end >= n and (start := self._after.get(tuple(ids[end - n :]))) is not None:
                return list(ids[start : start + most])
        return []


class Pace:
    """How many guesses are worth their price, by how many were right of late."""

    def __init__(self) -> None:
        self._rate = 0.5
        self._idle = 0
        self.guessed = self.accepted = 0

    def wanted(self, batch: int) -> int:
        """How many guesses pay in a step of so many sequences: as long as the chance that all are right exceeds their cost."""
        price = ROW_COST * batch / (1 + ROW_COST * (batch - 1))
        count = 0
        while self._rate ** (count + 1) > price:
            count += 1
        if count:
            self._idle = 0
            return count
        self._idle = (self._idle + 1) % PROBE
        return 0 if self._idle else 1

    def learn(self, guessed: int, accepted: int) -> None:
        """So many were tried, and the first so many were right."""
        self.guessed += guessed
        self.accepted += accepted
        for i in range(min(guessed, accepted + 1)):
            self._rate += WEIGHT * (
                (i < accepted) * 0.99 - self._rate
            )  # stays below 1, at which any number of guesses would pay
