"""Many texts -> requests, of which a few are under way at a time: neither the server waits, nor does memory grow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protocol import messages as m
from protocol.errors import BadRequest
from protocol.requests import request

MANY_S = 3600.0
"""Timeout of one of many requests, which wait for each other."""
GENERATIONS = 32
"""Most generations under way: twice as many as the rows that a model has by default."""


def generations(prompts: Iterable[str], settings: Mapping[str, Any]) -> Iterator[m.Generate]:
    """Yield a request for each prompt; where there is a seed, each begins with that after the last of the one before.

    Raises: BadRequest, which says the number of the prompt, from 0.
    """
    given = dict(settings)
    seed = given.pop("seed", None)
    for number, prompt in enumerate(prompts):
        try:
            made = request(m.Generate, given, prompt=prompt, stream=False, seed=seed)
        except BadRequest as e:
            raise BadRequest(f"prompt {number}: {e}") from None
        yield made
        if seed is not None:
            seed += made.n
