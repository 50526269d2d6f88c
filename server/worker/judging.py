"""What is told of a token at its place in a text: from logits, for engines that do not tell it themselves."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
from numpy.typing import NDArray

from server.engines.base import Judged, Logits
from server.worker.softmax import log_totals

AT_ONCE = 32
"""Most places whose probabilities are in memory at a time."""


def judge(logits: Logits, tokens: Many[int], members: NDArray[np.float32] | None = None) -> Judged:
    """Return what is told of each of `tokens`, of which the logits are [tokens, vocabulary].

    `members`, [vocabulary], are the set of tokens whose mass is told. Raises: FloatingPointError for what is no number.
    """
    count = len(tokens)
    logprobs, entropies = np.zeros(count), np.zeros(count)
    ranks, greedy = np.ones(count, np.int32), np.zeros(count, np.int32)
    masses = None if members is None else np.zeros(count)
    for first in range(0, count, AT_ONCE):
        part = slice(first, min(count, first + AT_ONCE))
        some = logits[part]
        own = some[np.arange(len(some)), np.asarray(tokens[part])]
        totals = log_totals(some)
        logs = some - totals[:, None].astype(np.float32)
        chances = np.exp(logs)
        logprobs[part] = own - totals
        ranks[part] += (some > own[:, None]).sum(1, dtype=np.int32)
        entropies[part] = np.maximum(0.0, -(chances * logs).sum(1, dtype=np.float64))
        greedy[part] = some.argmax(1)
        if masses is not None and members is not None:
            with np.errstate(divide="ignore"):
                masses[part] = np.log((chances * members).sum(1, dtype=np.float64))
    return Judged(logprobs, ranks, entropies, greedy, masses)
