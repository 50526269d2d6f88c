"""The daemon under stress. `every_promise()` imports all files that make promises."""

from __future__ import annotations

from scripts.reliability.promise import PROMISES, Check


def every_promise() -> dict[str, Check]:
    # Each registers its own.
    from scripts.reliability import (  # noqa: F401
        deaths,
        endings,
        far,
        frames,
        guesses,
        hostile,
        outsiders,
        peers,
        ranges,
        turns,
    )

    return PROMISES
