"""Beam search, beam sampling and diverse beam search."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocol import messages as m
from server.engines.base import Engine, Hidden, Logits
from server.worker.increments import Increments
from server.worker.sampling import COLDEST, TINY, candidates
from server.worker.search import Search, common
from server.worker.sequence import Generation
from server.worker.softmax import log_softmax

Scores = NDArray[np.float32]
Written: TypeAlias = tuple[Increments, str]
"""Decoder after a beam's tokens, and the end of their text, in which a stop string may have begun."""


@dataclass(frozen=True)
class Hypothesis:
    """New tokens and the sum of their log-probabilities.

    A finished one has a `reason`, and its `score` is that sum divided by a power of its length.
    """

    tokens: tuple[int, ...]
    score: float
    reason: m.FinishReason | None = None


@dataclass
class Group:
    """Beams that compete with each other: all of them, but in diverse beam search."""

    beams: list[Hypothesis]
    ended: list[Hypothesis] = field(default_factory=list)
    """The best finished ones, best first."""
    done: bool = False


class BeamSearch(Search):
    """Beam search, beam sampling and diverse beam search, as transformers' `generate` does the first two.

    Each step takes the 2k best of all one-token continuations of k beams by the sum of their log-probabilities (or
    draws them without replacement: Kool et al. 2019); with more than one end of text as many more as may end. Of the
    first k of these, those that end are finished; the best k that do not end go on. In diverse beam search groups
    choose one after the other, and a token costs a later group `diversity_penalty` for each beam of an earlier one that
    took it (Vijayakumar et al. 2016); the best of all groups are returned.
    """

    def __init__(self, generation: Generation) -> None:
        r = generation.request
        super().__init__(generation, r.num_beams)
        self._ends = generation.vocabulary.ends
        self._written: dict[tuple[int, ...], Written] = {}
        """Texts of the beams, where there are stop strings to look for."""
        self._fresh: dict[tuple[int, ...], Written] = {}
        draws = r.strategy == "beam_sample" and r.temperature >= COLDEST
        self._random = np.random.Generator(np.random.PCG64(self.outputs[0].seed)) if draws else None
        count = r.num_beam_groups if r.strategy == "diverse_beam" else 1
        self._size = r.num_beams // count
        self._choices = 1 + max(1, len(self._ends))
        """Number of tokens of one beam that must be at hand, so that it can go on whatever ends it."""
        self._groups = [Group([Hypothesis((), 0.0)]) for _ in range(count)]

    def start(self, logits: Logits, engine: Engine) -> None:
        logs = log_softmax(logits)  # [vocabulary]
        self._step([logs] * len(self._groups), [0] * len(self._groups), engine)

    def proceed(self, logits: Logits, hidden: Hidden | None, engine: Engine) -> None:  # noqa: ARG002 - others use it
        self._step([log_softmax(row) for row in logits], range(0, self.width, self._size), engine)

    def conclude(self, reason: m.FinishReason) -> None:
        running = [
            Hypothesis(b.tokens, self._by_length(b.score, len(b.tokens)), reason)
            for group in self._groups
            if not group.done
            for b in group.beams
            if b.score > -np.inf
        ]
        self._return([*(h for group in self._groups for h in group.ended), *running], reason)

    def _step(self, rows: list[Scores], first: Many[int], engine: Engine) -> None:
        """Take a step with the log-probabilities after each lane, `rows`; those of each group begin at `first`."""
        parents: list[int] = []
        tokens: list[int] = []
        taken: list[int] = []
        for group, at in zip(self._groups, first, strict=True):
            chosen = [] if group.done else self._extend(group, rows[at : at + len(group.beams)], at, taken)
            taken += [token for _, token, _ in chosen]
            # Places that are not filled get a continuation without a chance, beside those that go on.
            chosen += [(0, 0, -np.inf)] * (self._size - len(chosen))
            parents += [at + parent for parent, _, _ in chosen]
            tokens += [token for _, token, _ in chosen]
            if not group.done:
                group.beams = [Hypothesis((*group.beams[p].tokens, t), s) for p, t, s in chosen]
        self._written, self._fresh = self._fresh, {}
        if all(group.done for group in self._groups):
            self._return([h for group in self._groups for h in group.ended], "length")
            return
        self._publish()
        self._fork(parents, tokens, engine)

    def _extend(self, group: Group, rows: list[Scores], at: int, taken: list[int]) -> list[tuple[int, int, float]]:
        """Choose a group's next beams: (parent, token, score), best first.

        Those that end are added to `ended`; `done` says whether the group has ended with them.
        """
        r, size = self.request, self._size
        started = bool(group.beams[0].tokens)
        scores = np.stack(  # [beams, vocabulary]
            [self._scores(row, self.lanes[at + i] if started else None) for i, row in enumerate(rows)]
        )
        if taken and r.strategy == "diverse_beam":
            tokens, counts = np.unique(taken, return_counts=True)
            scores[:, tokens] -= np.float32(r.diversity_penalty) * counts.astype(np.float32)
        if self._random is not None:
            scores = np.stack([self._warped(row) for row in scores])
        total = (scores + np.array([[b.score] for b in group.beams], np.float32)).ravel()  # [beams * vocabulary]
        order = total
        if self._random is not None:  # the Gumbel trick: the largest of these are draws without replacement
            order = total - np.log(-np.log(np.maximum(self._random.random(len(total)), TINY)))
        kept = min(self._choices * size, len(order))
        best = np.argpartition(-order, kept - 1)[:kept]  # [kept]
        best = best[np.argsort(-order[best], kind="stable")]
        found = [
            (int(i) // scores.shape[1], int(i) % scores.shape[1], float(total[i])) for i in best if total[i] > -np.inf
        ]
        length = len(group.beams[0].tokens) + 1
        reasons = [self._reason(group.beams[p].tokens, t, length) for p, t, _ in found]
        full = len(group.ended) == size
        if not (full and r.early_stopping == "yes"):
            fresh = [
                Hypothesis((*group.beams[p].tokens, t), self._by_length(s, length), reason)
                for (p, t, s), reason in zip(found[:size], reasons, strict=False)
                if reason
            ]
            group.ended = sorted([*group.ended, *fresh], key=lambda h: -h.score)[:size]
        onward = sorted((c for c, reason in zip(found, reasons, strict=True) if not reason), key=lambda c: -c[2])[:size]
        group.done = not onward or self._settled(group, onward[0][2], length)
        return [] if group.done else onward

    def _settled(self, group: Group, best: float, length: int) -> bool:
        """Return True if nothing that still runs can change what the group returns, by the rule of `early_stopping`."""
        if len(group.ended) < self._size:
            return False
        r = self.request
        if r.early_stopping == "yes":
            return True
        longest = r.max_new_tokens if r.early_stopping == "never" and r.length_penalty > 0 else length
        return self._by_length(best, longest) <= group.ended[-1].score

    def _reason(self, before: tuple[int, ...], token: int, length: int) -> m.FinishReason | None:
        if token in self._ends and not self.request.ignore_eos:
            return "eos"
        stops = bool(self.request.stop) and self._stops(before, token)
        if token in self._generation.stops or (stops and length >= self.request.min_new_tokens):
            return "stop"
        return "length" if length >= self.request.max_new_tokens else None

    def _stops(self, before: tuple[int, ...], token: int) -> bool:
        """Return True if the last token's text completes a stop string."""
        increments, begun = self._written.get(before) or (self._generation.increments(), "")
        increments = increments.fork()
        piece = increments.push(token)
        end = begun + piece
        longest = max(map(len, self.request.stop))
        self._fresh[(*before, token)] = increments, end[-longest:]
        return bool(piece) and any(end.find(s, max(0, len(begun) - len(s) + 1)) >= 0 for s in self.request.stop)

    def _by_length(self, score: float, length: int) -> float:
        divisor: float = max(1, length) ** self.request.length_penalty
        return score / divisor

    def _warped(self, row: Scores) -> Scores:
        """Return a row by the temperature, with tokens that the samplers drop at minus infinity.  # [vocabulary]

        Tokens enough are left that a beam can both end and go on.
        """
        ids, _ = candidates(row, self.request, least=self._choices)
        warped = np.full_like(row, -np.inf)
        warped[ids] = row[ids] / np.float32(self.request.temperature)
        return warped

    def _publish(self) -> None:
        """Give the outputs the tokens that are certain, since all texts that may still be returned begin with them."""
        open_beams = [b.tokens for g in self._groups if not g.done for b in g.beams if b.score > -np.inf]
        texts = [*open_beams, *(h.tokens for g in self._groups for h in g.ended)]
        certain = min((common(texts[0], text) for text in texts), default=0)
        for output in self.outputs:
            output.count(self.width)
            output.take(texts[0][output.new_tokens : certain])

    def _return(self, hypotheses: list[Hypothesis], reason: m.FinishReason) -> None:
        best = sorted(hypotheses, key=lambda h: -h.score) or [Hypothesis((), 0.0, reason)]
        for i, output in enumerate(self.outputs):
            hypothesis = best[min(i, len(best) - 1)]
            output.count(self.width)
            output.score = hypothesis.score
            output.take(hypothesis.tokens[output.new_tokens :])
            output.finish(hypothesis.reason or reason)
