"""Settings of a generation as lm-eval's tasks have them -> those of a request."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from protocol.errors import BadRequest

LENGTH = 256
"""Tokens to write where a task does not say, as in lm-eval's `hf`."""
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""Names of the length, the first one given counts."""
MAX_STOPS = 16
"""Most strings that a request may stop at; at more, what is written is cut when it has come."""


@dataclass(frozen=True)
class Writing:
    """How a text is to be continued."""

    length: int
    """Tokens to write at most."""
    until: tuple[str, ...]
    settings: dict[str, Any]
    """Fields of messages.Generate."""

    def cut(self, text: str) -> str:
        """Return what stands before any of the strings that end it."""
        for end in self.until:
            text = text.split(end, maxsplit=1)[0]
        return text


def read(given: Mapping[str, Any]) -> Writing:
    """Return what a task's generation_kwargs mean. What lm-eval has no name for is passed on as it is.

    A text is drawn where do_sample or a temperature says so, else it is the likeliest; what is drawn depends on
    lm-eval's --seed. Raises: BadRequest for what is to be drawn without a temperature, where `hf` ends with an error.
    """
    rest = {name: value for name, value in given.items() if name not in LENGTHS}
    lengths = [int(given[name]) for name in LENGTHS if given.get(name) is not None]
    until = rest.pop("until", None) or []
    until = [until] if isinstance(until, str) else until
    temperature = float(rest.pop("temperature", None) or 0.0)
    samples = rest.pop("do_sample", None)
    samples = temperature > 0 if samples is None else bool(samples)
    if samples and temperature <= 0:
        raise BadRequest(
            f"generation_kwargs: do_sample needs a temperature above 0, got {temperature:g}; give one, or leave out "
            "do_sample for the likeliest text"
        )
    if rest.get("num_beams") == 1:  # transformers' word for none
        del rest["num_beams"]
    if samples:
        rest = {"seed": random.getrandbits(62), "temperature": temperature} | rest
        rest.setdefault("strategy", "sample")
    else:
        rest.setdefault("strategy", "greedy")
    ends = tuple(end for end in until if end)
    return Writing(lengths[0] if lengths else LENGTH, ends, rest | {"stop": list(ends[:MAX_STOPS])})
