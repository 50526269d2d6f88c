"""What the sampling settings leave of a distribution: temperature, top-k, top-p, min-p, in the order of the server.

Pure arithmetic on the alternatives that the server told, which are the likeliest tokens and not all: what lies beyond
them is taken to stay as likely as it was in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def left(logprobs: Sequence[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """Return the probability with which each token would be drawn. `logprobs`: the likeliest first, of the model."""
    if not logprobs:
        return []
    known = [math.exp(min(0.0, value)) if math.isfinite(value) else 0.0 for value in logprobs]
    if temperature < 0.01:
        return [1.0, *([0.0] * (len(known) - 1))]
    beyond = max(0.0, 1.0 - sum(known))
    count = min(len(known), top_k) if top_k else len(known)
    if 0 < top_k <= len(known):
        beyond = 0.0
    top = max(known[0], 1e-300)
    weights = [(p / top) ** (1.0 / temperature) if i < count and p else 0.0 for i, p in enumerate(known)]
    rest = sum(weights) * beyond / max(sum(known), 1e-300)
    whole = sum(weights) + rest
    if top_p < 1:
        reached, kept = 0.0, 0
        while kept < count and reached < top_p * whole:
            reached += weights[kept]
            kept += 1
        rest = rest if reached < top_p * whole else 0.0
        weights = [w if i < kept else 0.0 for i, w in enumerate(weights)]
    if min_p > 0:
        weights = [w if w >= min_p * weights[0] else 0.0 for w in weights]
        rest = 0.0 if not all(weights) else rest
    whole = sum(weights) + rest
    return [w / whole if whole else 0.0 for w in weights]
