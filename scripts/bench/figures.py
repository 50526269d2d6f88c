"""Statistics of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that `share` of all values lie below: 0.95 for the 95th percentile."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
