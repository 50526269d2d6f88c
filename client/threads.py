"""How many of its threads an engine has used, where that says something: other programs wanted the cores."""

from __future__ import annotations

from protocol import messages as m

FEWER = 0.9
"""Share of its threads below which a result says how many an engine has used."""


def fewer(result: m.Generated) -> str:
    """Return how many of its threads an engine has used, in words; empty where it used them all, or does not say."""
    if 0 < result.threads_used < result.threads * FEWER:
        return f"{result.threads_used:.1f} of {result.threads} threads"
    return ""
