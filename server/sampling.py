"""Logits -> token.

The order of the steps and what each keeps are transformers': repetition penalty, temperature, top-k, top-p, min-p. The
draw itself takes one uniform number from the sequence's own generator and inverts the cumulative distribution in the
order of token ids, so that a sequence's draws depend on its request alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

from protocol.messages import Generate
from server.engines.base import Logits

Ids = NDArray[np.int64]
Weights = NDArray[np.float32]
BLOCK = 256


class Sampler:
    """The sampling state of one sequence: its settings, its random numbers, the tokens it has seen."""

    def __init__(self, request: Generate, seed: int, prompt: Many[int], vocabulary: int) -> None:
        self.request = request
        self.greedy = request.strategy == "greedy" or request.temperature == 0
        self._random = None if self.greedy else np.random.Generator(np.random.PCG64(seed))
        self._seen: NDArray[np.bool_] | None = None
        if request.repetition_penalty != 1:
            self._seen = np.zeros(vocabulary, np.bool_)
            self._seen[list(prompt)] = True

    @property
    def plain(self) -> bool:
        """Nothing but an argmax is asked for."""
        return self.greedy and self._seen is None

    def pick(self, logits: Logits) -> int:
        """Choose a token from float32 [vocabulary]."""
        if self._seen is not None:
            logits = penalise_repetition(logits, np.flatnonzero(self._seen), self.request.repetition_penalty)
        token = int(logits.argmax()) if self._random is None else draw(logits, self.request, self._random.random())
        if self._seen is not None:
            self._seen[token] = True
        return token


def draw(logits: Logits, request: Generate, uniform: float) -> int:
    """Draw a token from float32 [vocabulary] with one number from [0, 1)."""
    ids, weights = candidates(logits, request)
    return int(ids[invert(weights, uniform)])


def sample(logits: Logits, samplers: Many[Sampler]) -> list[int]:
    """Choose one token for each row of float32 [len(samplers), vocabulary]."""
    likeliest = logits.argmax(axis=1) if any(s.plain for s in samplers) else None
    return [int(likeliest[i]) if likeliest is not None and sampler.plain else sampler.pick(logits[i]) for i, sampler in enumerate(samplers)]


def invert(weights: Weights, uniform: float) -> int:
    """The index at which the running sum of the weights passes the share `uniform` of their total.

    By way of the sums of blocks: a running sum over a whole vocabulary would take longer than everything else here.
    """
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64)
    edges = np.cumsum(blocks)
    target = uniform * edges[-1]
    block = min(int(np.searchsorted(edges, target, side="right")), len(edges) - 1)
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    sums = np.cumsum(inside, dtype=np.float64) + (edges[block] - blocks[block])
    return block * BLOCK + min(int(np.searchsorted(sums, target, side="right")), len(inside) - 1)


def penalise_repetition(logits: Logits, seen: Ids, penalty: float) -> Logits:
    """Divide positive and multiply negative logits of tokens that were there already (Keskar et al. 2019, CTRL)."""
    logits = logits.copy()
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    return logits


def candidates(logits: Logits, request: Generate) -> tuple[Ids, Weights]:
    """The tokens that may be drawn, in ascending order, and their weights (in proportion to their probabilities)."""
    scores = logits / np.float32(request.temperature)
    kept = top_k(scores, request.top_k)
    ids = np.arange(len(scores)) if kept is None else kept
    scores = scores if kept is None else scores[kept]
    weights = np.exp(scores - scores.max())
    if request.top_p < 1:
        kept = top_p(weights, request.top_p)
        ids, weights = ids[kept], weights[kept]
    if request.min_p > 0:
        kept = np.flatnonzero(weights >= request.min_p * weights.max())
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def top_k(scores: Logits, k: int) -> Ids | None:
    """Indices of the k largest scores and of what equals the smallest of them, ascending; None for all (Fan et al. 2018)."""
    if not 0 < k < len(scores):
        return None
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= threshold)


def top_p(weights: Weights, p: float) -> Ids:
    """Indices of the fewest weights that reach the share `p` of their sum, ascending (Holtzman et al. 2020, nucleus).

    Weights equal to the smallest of them are kept too.
    """
    limit = (1 - p) * weights.sum(dtype=np.float64)
    # Weights below limit / n are dropped in any case, since all of them together stay below the limit: sort the rest.
    considered = weights >= limit / len(weights)
    left_out = weights[~considered].sum(dtype=np.float64)
    ascending = np.sort(weights[considered])
    dropped = int(np.searchsorted(left_out + np.cumsum(ascending, dtype=np.float64), limit, side="right"))
    return np.flatnonzero(weights >= ascending[min(dropped, len(ascending) - 1)])
