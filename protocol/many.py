"""Many texts -> requests, of which a few are under way at a time: neither the server waits, nor does memory grow."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from protocol import messages as m
from protocol.errors import BadRequest
from protocol.requests import request

MANY_S = 3600.0
"""Timeout of one of many requests, which wait for each other."""
GENERATIONS = 32
"""Most generations under way: twice as many as the rows that a model has by default."""

WORDS = re.compile(r".*[^ \t\n\v\f\r](?=[ \t\n\v\f\r])", re.DOTALL)
SIGNS = re.compile(r".*[^\w\s](?=\w)", re.DOTALL)
"""Up to the last end of a word, or of a run of signs: where tokens end, too."""


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


def parts(text: str, limit: int) -> Iterator[tuple[int, int]]:
    """Yield where the parts of a text begin and end, in characters: each of at most `limit` bytes in UTF-8.

    A part ends where a word ends; where none does, between a sign and a letter, or anywhere.
    """
    begin = 0
    while begin < len(text):
        end = begin + len(text[begin : begin + limit].encode()[:limit].decode(errors="ignore"))
        if end < len(text):
            found = WORDS.match(text, begin, end + 1) or SIGNS.match(text, begin, end + 1)
            end = found.end() if found else end
        yield begin, end
        begin = end
