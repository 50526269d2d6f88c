"""What sampling leaves of a distribution, beside the server's own samplers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from client.window import distribution
from protocol.messages import Generate
from server.worker.sampling import candidates

LOGITS = np.array([3.0, 2.5, 1.0, 0.5, 0.0, -1.0, -2.0, -4.0], np.float32)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 3},
        {"top_k": 0, "top_p": 0.8},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.9, "min_p": 0.2},
        {"top_k": 0, "min_p": 0.1},
    ],
)
def test_it_is_what_the_server_draws_from(settings: dict[str, float]) -> None:
    asked = Generate(prompt="x", **settings)  # type: ignore[arg-type]  # the settings have the fields' types
    ids, weights = candidates(LOGITS, asked)
    server = dict(zip(ids.tolist(), (weights / weights.sum()).tolist(), strict=True))
    logprobs = (LOGITS - math.log(float(np.exp(LOGITS).sum()))).tolist()
    left = distribution.left(logprobs, asked.temperature, asked.top_k, asked.top_p, asked.min_p)
    assert left == pytest.approx([server.get(i, 0.0) for i in range(len(LOGITS))], abs=1e-5)


def test_odd_values_are_drawn_all_the_same() -> None:
    assert distribution.left([], 1.0, 0, 1.0, 0.0) == []
    assert distribution.left([-0.1, -3.0], 0.0, 0, 1.0, 0.0) == [1.0, 0.0]
    odd = distribution.left([math.nan, -math.inf, math.inf], 1.0, 50, 0.9, 0.1)
    assert len(odd) == 3 and all(0 <= p <= 1 for p in odd)
    beyond = distribution.left([math.log(0.2), math.log(0.1)], 1.0, 0, 1.0, 0.0)
    assert beyond == pytest.approx([0.2, 0.1])  # the rest is with tokens that are not known
