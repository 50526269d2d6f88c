"""Contrastive search."""

from __future__ import annotations

import numpy as np

from protocol import messages as m
from protocol.errors import BadRequest
from server.engines.base import Engine, Hidden, Logits
from server.worker.processors import NONE_LEFT, none_left
from server.worker.sampling import TINY
from server.worker.search import Search
from server.worker.sequence import Generation
from server.worker.softmax import Weights, softmax


class ContrastiveSearch(Search):
    """Search for likely tokens that are unlike the text so far (Su et al. 2022).

    Each step takes that one of the k likeliest tokens whose (1 - alpha) probability - alpha similarity is largest,
    where similarity is the largest cosine between its hidden state and any before it. A token without a chance that a
    float can hold, as one that is forbidden, is never taken, however unlike the text it is.
    """

    looks_inside = True

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation, generation.request.num_candidates)
        self.reuses = False  # the prompt's hidden states are needed, which the prefix cache does not have
        self._context: list[Hidden] = []
        """Unit vectors of all tokens so far, [tokens, width] each."""
        self._chances: Weights = np.empty(0, np.float32)  # [lanes]

    def see(self, hidden: Hidden) -> None:
        self._context.append(unit(hidden))

    def start(self, logits: Logits, engine: Engine) -> None:
        self._propose(self._scores(logits, None), [0] * self.width, engine)

    def proceed(self, logits: Logits, hidden: Hidden | None, engine: Engine) -> None:
        assert hidden is not None  # noqa: S101 - `looks_inside` asks for it
        states = unit(hidden)  # [lanes, width]
        likeness = np.max([(states @ part.T).max(axis=1) for part in self._context], axis=0)  # [lanes]
        alpha = self.request.penalty_alpha
        worth = np.where(self._chances > TINY, (1 - alpha) * self._chances - alpha * likeness, -np.inf)  # [lanes]
        best = int(np.argmax(worth))
        self._context = [np.concatenate([*self._context, states[best : best + 1]])]
        output = self.outputs[0]
        output.count(self.width)
        output.take([self.lanes[best].ids[-1]])
        if output.finished is None:
            self._propose(self._scores(logits[best], self.lanes[best]), [best] * self.width, engine)

    def conclude(self, reason: m.FinishReason) -> None:
        self.outputs[0].finish(reason)

    def _propose(self, logits: Logits, parents: list[int], engine: Engine) -> None:
        if none_left(logits, self.request):
            raise BadRequest(NONE_LEFT)
        weights = softmax(logits, 1.0)
        chances = weights / weights.sum(dtype=np.float64)  # [vocabulary]
        # By the logits, since chances that are too small for a float are all 0
        tokens = np.argsort(-logits, kind="stable")[: self.width]  # [lanes]
        self._chances = chances[tokens]
        self._fork(parents, tokens.tolist(), engine)


def unit(hidden: Hidden) -> Hidden:
    """Return a copy whose rows have length 1.  # [tokens, width]"""
    result: Hidden = hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), TINY)
    return result
