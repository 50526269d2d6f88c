"""The samplers against transformers' own processors, and the draw against its distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings, strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from protocol.messages import Generate
from server.sampling import Sampler, candidates, invert, penalise_repetition, sample

VOCABULARY = 500


def logits_of(seed: int, size: int = VOCABULARY, scale: float = 3.0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def ours(logits: np.ndarray[Any, np.dtype[np.float32]], seen: list[int], **fields: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    request = Generate(prompt="", **fields)
    if request.repetition_penalty != 1:
        logits = penalise_repetition(logits, np.unique(seen), request.repetition_penalty)
    ids, weights = candidates(logits, request)
    assert (np.diff(ids) > 0).all()
    probabilities = np.zeros(len(logits))
    probabilities[ids] = weights / weights.sum(dtype=np.float64)
    return probabilities


def theirs(logits: np.ndarray[Any, np.dtype[np.float32]], seen: list[int], **fields: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    steps = LogitsProcessorList()
    if fields.get("repetition_penalty", 1) != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(fields["repetition_penalty"]))
    if fields.get("temperature", 1) != 1:
        steps.append(TemperatureLogitsWarper(fields["temperature"]))
    if fields.get("top_k", 50):
        steps.append(TopKLogitsWarper(fields.get("top_k", 50)))
    if fields.get("top_p", 1) < 1:
        steps.append(TopPLogitsWarper(fields["top_p"]))
    if fields.get("min_p", 0) > 0:
        steps.append(MinPLogitsWarper(fields["min_p"]))
    scores = steps(torch.tensor([seen]), torch.tensor(logits)[None])  # type: ignore[no-untyped-call]
    return torch.softmax(scores[0].double(), dim=-1).numpy()


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"temperature": 0.7}, {"temperature": 2.5, "top_k": 0}, {"top_k": 1}, {"top_k": 7}, {"top_k": 1_000_000}, {"top_k": 0, "top_p": 0.9},
        {"top_k": 0, "top_p": 0.05}, {"top_k": 40, "top_p": 0.6, "temperature": 1.3}, {"top_k": 0, "min_p": 0.1}, {"min_p": 1.0},
        {"top_p": 0.8, "min_p": 0.05, "temperature": 0.9}, {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8, "top_p": 0.95, "temperature": 0.6},
    ],
)  # fmt: skip
def test_distributions_are_those_of_transformers(fields: dict[str, Any]) -> None:
    assert transformers.__version__
    for seed in range(5):
        logits, seen = logits_of(seed), [3, 77, 77, int(logits_of(seed).argmax())]
        np.testing.assert_allclose(ours(logits, seen, **fields), theirs(logits, seen, **fields), atol=1e-5)


def test_equal_logits_are_kept_or_dropped_together() -> None:
    logits = np.zeros(64, np.float32)
    assert len(candidates(logits, Generate(prompt="", top_k=5))[0]) == 64
    assert len(candidates(logits, Generate(prompt="", top_k=0, top_p=0.5))[0]) == 64


@settings(max_examples=200)
@given(st.integers(1, 2000), st.integers(0, 2**32), st.floats(0, 1, exclude_max=True))
def test_invert_is_the_inverse_of_the_running_sum(size: int, seed: int, uniform: float) -> None:
    weights = np.random.default_rng(seed).random(size).astype(np.float32) ** 8
    weights[0] = max(weights[0], np.float32(1e-3))
    index = invert(weights, uniform)
    sums = np.cumsum(weights, dtype=np.float64)
    slack = 1e-9 * sums[-1]
    assert sums[index] >= uniform * sums[-1] - slack
    assert index == 0 or sums[index - 1] <= uniform * sums[-1] + slack


def test_draws_follow_the_distribution() -> None:
    """Chi-square over many seeds."""
    logits = logits_of(1, size=12, scale=1.0)
    expected = ours(logits, [], top_k=0)
    draws = [Sampler(Generate(prompt="", top_k=0), seed, [], 12).pick(logits) for seed in range(20_000)]
    counts = np.bincount(draws, minlength=12)
    statistic = float(((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum())
    assert statistic < 31.3  # the 99.9th percentile of chi-square with 11 degrees of freedom


def test_a_seed_fixes_the_draws_whatever_the_neighbours() -> None:
    logits = np.stack([logits_of(i) for i in range(3)])
    alone = [Sampler(Generate(prompt=""), 5, [], VOCABULARY).pick(logits[1]) for _ in range(1)]
    together = sample(logits, [Sampler(Generate(prompt=""), seed, [], VOCABULARY) for seed in (4, 5, 6)])
    assert together[1] == alone[0]


def test_greedy_and_temperature_zero_take_the_likeliest() -> None:
    logits = logits_of(2)[None]
    for request in (Generate(prompt="", strategy="greedy"), Generate(prompt="", temperature=0)):
        assert sample(logits, [Sampler(request, 0, [], VOCABULARY)]) == [int(logits[0].argmax())]


def test_greedy_with_a_repetition_penalty_remembers_what_it_took() -> None:
    logits = np.array([1.0, 0.9, -1.0], np.float32)
    sampler = Sampler(Generate(prompt="", strategy="greedy", repetition_penalty=2.0), 0, [], 3)
    assert [sampler.pick(logits) for _ in range(3)] == [0, 1, 0]
