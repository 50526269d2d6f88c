"""What is told of the log-probabilities of a text together: by the server, and by the client of a text in parts."""

from __future__ import annotations

import math


def means(total: float, count: int, size: int) -> dict[str, float]:
    """Return what is told of `count` log-probabilities with this sum, of a text of `size` bytes."""
    mean = total / max(1, count)
    return {
        "sum": total,
        "mean": mean,
        "perplexity": math.exp(min(-mean, 700.0)),
        "bits_per_byte": -total / math.log(2) / max(1, size),
    }
