"""The arithmetic of scripts/bench/scoring.py: what a figure of tokens a second counts."""

from __future__ import annotations

import pytest

from protocol.messages import Score
from scripts.bench.scoring import amount
from server.worker.windows import stride_of


@pytest.mark.parametrize(
    ("texts", "tokens", "stride", "scored", "computed"),
    [
        (200, 15, 512, 3000, 3000),
        (8, 512, 512, 4096, 4096),
        (1, 1024, 512, 1024, 1024),  # what is before it and 1,023 of its tokens: the last one is not computed
        (1, 8192, 1023, 8192, 8192),
        (1, 8192, 1024, 8192, 8192),  # as the server takes it: each window has a token of the one before
        (1, 8192, 512, 8192, 15857),
        (1, 8192, 256, 8192, 30435),
    ],
)
def test_what_is_computed_for_a_score_goes_with_the_stride(
    texts: int, tokens: int, stride: int, scored: int, computed: int
) -> None:
    assert amount(texts, tokens, stride_of(Score(texts=[], stride=stride), 1024), 1024) == (scored, computed)
