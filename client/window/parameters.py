"""The settings that a server describes, and the values that they may have: neither a server nor a file is trusted."""

from __future__ import annotations

import math
from typing import Any

from protocol import messages as m
from protocol.parameters import parameters

OWN = {p.name: p for p in parameters()}
"""The settings as this version describes them."""
OF_THE_WINDOW = frozenset({"n", "truncate", "logprobs", "logprobs_of"})
"""Settings that the window sets itself."""
MAX_INT, MAX_FLOAT = 2**31 - 1, 3e38
"""Largest values: the window's number fields hold 32 bits."""


def usable(parameter: m.Parameter) -> bool:
    """True if it can be drawn and set: its default is one of its values, and of the type that its name has in this
    version.
    """
    own = OWN.get(parameter.name, parameter)
    return (
        parameter.name.isidentifier()
        and all(math.isfinite(end) for end in (parameter.minimum, parameter.maximum) if end is not None)
        and (parameter.type, parameter.default is None) == (own.type, own.default is None)
        and fits(parameter, parameter.default)
    )


def fits(parameter: m.Parameter, value: Any) -> bool:
    """True for a value of the parameter's type and range."""
    low = -math.inf if parameter.minimum is None else parameter.minimum
    high = math.inf if parameter.maximum is None else parameter.maximum
    match parameter.type:
        case "int" if parameter.default is None:  # new each time, or of any size: it is shown as text
            return value is None or (type(value) is int and low <= value <= high)
        case "int":
            return type(value) is int and low <= value <= high and abs(value) <= MAX_INT
        case "float":
            return type(value) in {int, float} and low <= value <= high and abs(value) <= MAX_FLOAT
        case "bool":
            return type(value) is bool
        case "choice":
            return value in parameter.choices
        case "strings":
            return isinstance(value, list) and all(isinstance(text, str) for text in value)
        case "biases":
            return isinstance(value, list) and all(_is_bias(pair) for pair in value)
        case _:  # of a later version
            return False


def _is_bias(pair: Any) -> bool:
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return False
    token, bias = pair
    return type(token) is int and type(bias) in {int, float} and abs(bias) <= MAX_FLOAT
