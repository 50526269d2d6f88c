"""Samplers against transformers' own processors, and the draw against its distribution."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from numpy.typing import NDArray
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    MinPLogitsWarper,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from protocol.errors import BadRequest
from protocol.messages import Generate
from scripts.draws import KINDS, compare, differences
from server.catalogue.architecture import Architecture
from server.catalogue.engines import instruction_sets
from server.checkpoint.tensors import expected_shapes
from server.convert.native_layout import FILE, Layout
from server.engines import native
from server.worker import sampling
from server.worker.processors import Processors
from server.worker.sampling import Sampler, candidates, invert, mirostat, sample

VOCABULARY, ENDS = 500, (11, 40)
Array = NDArray[Any]


def logits_of(seed: int, size: int = VOCABULARY, scale: float = 3.0) -> Array:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def processors_of(request: Generate, prompt: list[int], bad_words: list[list[int]] | None = None) -> Processors:
    return Processors(request, len(prompt), ENDS, bad_words or [])


def sampler_of(request: Generate, seed: int = 0) -> Sampler:
    return Sampler(request, seed, processors_of(request, []))


def ours(
    logits: Array,
    seen: list[int],
    prompt_tokens: int | None = None,
    bad_words: list[list[int]] | None = None,
    **fields: Any,
) -> Array:
    request = Generate(prompt="", **fields)
    processors = processors_of(request, seen[:prompt_tokens], bad_words)
    if processors.active:
        processors.apply(logits, seen[: len(seen) // 2])  # what it remembers grows in steps
        logits = processors.apply(logits, seen)
    ids, weights = candidates(logits, request)
    assert (np.diff(ids) > 0).all()
    probabilities = np.zeros(len(logits))
    probabilities[ids] = weights / weights.sum(dtype=np.float64)
    return probabilities


def theirs(
    logits: Array,
    seen: list[int],
    prompt_tokens: int | None = None,
    bad_words: list[list[int]] | None = None,
    **fields: Any,
) -> Array:
    steps = LogitsProcessorList()
    if fields.get("logit_bias"):
        steps.append(SequenceBiasLogitsProcessor([[[token], bias] for token, bias in fields["logit_bias"]]))
    if fields.get("repetition_penalty", 1) != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(fields["repetition_penalty"]))
    if fields.get("no_repeat_ngram_size"):
        steps.append(NoRepeatNGramLogitsProcessor(fields["no_repeat_ngram_size"]))
    if bad_words:
        steps.append(NoBadWordsLogitsProcessor(bad_words, eos_token_id=list(ENDS)))
    if fields.get("min_new_tokens"):
        steps.append(MinNewTokensLengthLogitsProcessor(len(seen[:prompt_tokens]), fields["min_new_tokens"], list(ENDS)))
    if fields.get("temperature", 1) != 1:
        steps.append(TemperatureLogitsWarper(fields["temperature"]))
    if fields.get("top_k", 50):
        steps.append(TopKLogitsWarper(fields.get("top_k", 50)))
    if fields.get("top_p", 1) < 1:
        steps.append(TopPLogitsWarper(fields["top_p"]))
    if fields.get("min_p", 0) > 0:
        steps.append(MinPLogitsWarper(fields["min_p"]))
    if fields.get("typical_p", 1) < 1:
        steps.append(TypicalLogitsWarper(fields["typical_p"]))
    scores = steps(torch.tensor([seen]), torch.tensor(logits)[None])
    return np.asarray(torch.softmax(scores[0].double(), dim=-1).numpy())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"temperature": 0.7},
        {"temperature": 2.5, "top_k": 0},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 1_000_000},
        {"top_k": 0, "top_p": 0.9},
        {"top_k": 0, "top_p": 0.05},
        {"top_k": 40, "top_p": 0.6, "temperature": 1.3},
        {"top_k": 0, "min_p": 0.1},
        {"min_p": 1.0},
        {"top_p": 0.8, "min_p": 0.05, "temperature": 0.9},
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.8, "top_p": 0.95, "temperature": 0.6},
        {"typical_p": 0.5, "top_k": 0},
        {"typical_p": 0.9, "temperature": 1.4},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2},
        {"no_repeat_ngram_size": 9},
        {"logit_bias": [(5, 4.0), (77, -3.0)]},
        {"min_new_tokens": 3},
        {"min_new_tokens": 2},
        {"bad_words": [[3, 77], [8], [4, 3]], "top_k": 0},
    ],
)
def test_distributions_are_those_of_transformers(fields: dict[str, Any]) -> None:
    for seed in range(5):
        logits, seen = logits_of(seed), [3, 77, 4, 77, int(logits_of(seed).argmax()), 3]
        np.testing.assert_allclose(ours(logits, seen, 4, **fields), theirs(logits, seen, 4, **fields), atol=1e-5)


def test_presence_and_frequency_penalties_count_new_tokens_only() -> None:
    logits = np.zeros(6, np.float32)
    request = Generate(prompt="", presence_penalty=0.5, frequency_penalty=0.25)
    got = processors_of(request, [1, 1]).apply(logits, [1, 1, 2, 3, 3, 3])
    assert got.tolist() == [0, 0, -0.75, -1.25, 0, 0]


def test_mirostat_brings_the_mean_surprise_to_its_aim() -> None:
    """Against a plain reading of the paper's version 2, and over many draws."""
    logits = logits_of(3, scale=2.0)
    kept, weights = mirostat(logits, 1.0, 4.0)
    p = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    assert kept.tolist() == np.flatnonzero(-np.log2(p) <= 4.0).tolist()
    np.testing.assert_allclose(weights / weights.sum(), p[kept] / p[kept].sum(), rtol=1e-5)
    assert len(mirostat(logits, 1.0, -3.0)[0]) == 1
    for tau in (2.0, 4.0):
        sampler = sampler_of(Generate(prompt="", strategy="mirostat", mirostat_tau=tau), seed=1)
        surprises = []
        for _ in range(3000):
            limit = sampler._mirostat
            kept, weights = mirostat(logits, 1.0, limit)
            token = sampler.pick(logits, [])
            surprises.append(-np.log2(weights[kept == token][0] / weights.sum()))
        assert np.mean(surprises[500:]) == pytest.approx(tau, abs=0.1)


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
    draws = [sampler_of(Generate(prompt="", top_k=0), seed).pick(logits, []) for seed in range(20_000)]
    counts = np.bincount(draws, minlength=12)
    statistic = float(((counts - 20_000 * expected) ** 2 / (20_000 * expected)).sum())
    assert statistic < 31.3  # the 99.9th percentile of chi-square with 11 degrees of freedom


def test_a_seed_fixes_the_draws_whatever_the_neighbours() -> None:
    logits = np.stack([logits_of(i) for i in range(3)])
    alone = [sampler_of(Generate(prompt=""), 5).pick(logits[1], [])]
    together = sample(logits, [sampler_of(Generate(prompt=""), seed) for seed in (4, 5, 6)], [[], [], []])
    assert together[1] == alone[0]


def test_greedy_and_temperature_zero_take_the_likeliest() -> None:
    logits = logits_of(2)[None]
    for request in (Generate(prompt="", strategy="greedy"), Generate(prompt="", temperature=0)):
        assert sample(logits, [sampler_of(request)], [[]]) == [int(logits[0].argmax())]


def test_greedy_with_a_repetition_penalty_remembers_what_it_took() -> None:
    logits = np.array([1.0, 0.9, -1.0], np.float32)
    sampler = sampler_of(Generate(prompt="", strategy="greedy", repetition_penalty=2.0))
    ids: list[int] = []
    for _ in range(3):
        ids.append(sampler.pick(logits, ids))
    assert ids == [0, 1, 0]


@pytest.mark.parametrize("temperature", [1e-320, 1e-46, 1e-40, 1e-6, 1.01e-5, 1e-3, 100.0])
@pytest.mark.parametrize(
    "more",
    [{}, {"top_p": 0.9}, {"min_p": 0.1}, {"typical_p": 0.5}, {"top_k": 0, "top_p": 1e-9}, {"strategy": "mirostat"}],
)
@pytest.mark.parametrize("penalty", [0.01, 1.0, 100.0])
def test_the_ends_of_the_ranges_are_sampled(temperature: float, more: dict[str, Any], penalty: float) -> None:
    logits = logits_of(1, scale=30.0)
    token = sampler_of(Generate(prompt="", temperature=temperature, repetition_penalty=penalty, **more)).pick(
        logits, [1, 2]
    )
    assert 0 <= token < VOCABULARY
    if temperature < 1e-3 and penalty == 1:
        assert token == int(logits.argmax())


def test_logits_that_are_no_numbers_are_an_error_not_a_token() -> None:
    for bad in (np.full(9, np.nan, np.float32), np.full(9, -np.inf, np.float32)):
        with pytest.raises(FloatingPointError):
            sampler_of(Generate(prompt="")).pick(bad, [])


def test_without_kernels_the_likeliest_of_no_numbers_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "NATIVE", False)
    sampler = sampler_of(Generate(prompt="", strategy="greedy"))
    logits = np.stack([logits_of(1), np.full(VOCABULARY, np.nan, np.float32)])
    number, fault = sample(logits, [sampler, sampler], [[], []])
    assert number == logits[0].argmax() and isinstance(fault, FloatingPointError)


@pytest.mark.parametrize("logprobs", [None, 1])
@pytest.mark.parametrize("strategy", ["greedy", "sample", "mirostat"])
def test_where_every_token_is_forbidden_that_is_said(strategy: Any, logprobs: int | None) -> None:
    request = Generate(prompt="", strategy=strategy, logprobs=logprobs, no_repeat_ngram_size=1)
    (token,) = sample(logits_of(1, 5)[None], [sampler_of(request)], [[0, 1, 2, 3, 4]])
    assert isinstance(token, BadRequest) and str(token).startswith("no token is left that may come")


def test_kernels_without_memory_fail_what_they_would_have_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others in the batch have chosen themselves, and keep their token."""
    monkeypatch.setattr(native.library(), "gpt2d_sample", lambda *_: native.NO_MEMORY)
    others = sampler_of(Generate(prompt="", strategy="greedy", logprobs=1))
    logits = np.stack([logits_of(1), logits_of(2)])
    failed, token = sample(logits, [sampler_of(Generate(prompt="")), others], [[], []])
    assert isinstance(failed, MemoryError) and token == int(logits[1].argmax())


def test_log_probabilities_of_the_model_and_of_the_sampler() -> None:
    logits = logits_of(4)
    fields: dict[str, Any] = {"temperature": 0.7, "top_k": 6, "presence_penalty": 1.0}
    plain = torch.log_softmax(torch.tensor(logits).double(), -1).numpy()
    after = theirs(logits, [], **{k: v for k, v in fields.items() if k != "presence_penalty"})
    for seed in range(10):
        for of, expected in (("model", plain), ("sampler", np.log(np.maximum(after, 1e-300)))):
            sampler = sampler_of(Generate(prompt="", logprobs=4, **{**fields, "logprobs_of": of}), seed)
            token = sampler.pick(logits, [])
            explained = sampler.explanations.pop()
            assert explained is not None
            assert explained.logprob == pytest.approx(expected[token], abs=1e-5)
            assert [t for t, _ in explained.top] == np.argsort(-expected)[:4].tolist()
            np.testing.assert_allclose([p for _, p in explained.top], np.sort(expected)[::-1][:4], atol=1e-5)
            assert token == sampler_of(Generate(prompt="", **fields), seed).pick(logits, []), "asking changes nothing"


@pytest.mark.parametrize("temperature", [1.01e-5, 1e-3, 0.01, 0.04])
@pytest.mark.parametrize("more", [{"top_k": 0}, {"top_k": 50, "top_p": 1.0}, {"strategy": "mirostat"}])
def test_alternatives_at_low_temperatures_are_the_likeliest_with_true_logarithms(
    temperature: float, more: dict[str, Any]
) -> None:
    logits = logits_of(6, scale=8.0)
    expected = torch.log_softmax(torch.tensor(logits).double() / temperature, -1).numpy()
    request = Generate(prompt="", temperature=temperature, mirostat_tau=20, logprobs=4, logprobs_of="sampler", **more)
    sampler = sampler_of(request)
    if more.get("strategy") == "mirostat":
        sampler._mirostat = 1e9  # which lets all through
    token = sampler.pick(logits, [])
    explained = sampler.explanations.pop()
    assert token == int(logits.argmax()) and explained.logprob == pytest.approx(expected[token], abs=1e-6)
    assert [t for t, _ in explained.top] == np.argsort(-expected)[:4].tolist()
    np.testing.assert_allclose([p for _, p in explained.top], np.sort(expected)[::-1][:4], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("strategy", ["greedy", "sample"])
def test_forbidden_tokens_are_no_alternatives(strategy: Any) -> None:
    logits = np.array([3, 2, 1, 0], np.float32)
    request = Generate(prompt="", strategy=strategy, logprobs=4, logprobs_of="sampler")
    sampler = Sampler(request, 0, Processors(request, 0, [], [[0], [2]]))
    sampler.pick(logits, [])
    explained = sampler.explanations.pop()
    assert [token for token, _ in explained.top] == [1, 3]
    assert sum(np.exp(p) for _, p in explained.top) == pytest.approx(1)


def test_log_probabilities_of_a_greedy_choice() -> None:
    logits = logits_of(5)
    for of in ("model", "sampler"):
        sampler = sampler_of(Generate(prompt="", strategy="greedy", logprobs=0, logprobs_of=of))
        assert sample(logits[None], [sampler], [[]]) == [int(logits.argmax())]
        explanation = sampler.explanations.pop()
        assert explanation.top == []
        assert explanation.logprob == pytest.approx(float(torch.log_softmax(torch.tensor(logits), -1).max()), abs=1e-5)


@pytest.mark.parametrize("instruction_set", instruction_sets())
@given(
    seed=st.integers(0, 10_000),
    size=st.sampled_from([7, 64, 500, 50_257]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 12.0]),
    coarse=st.booleans(),
    temperature=st.sampled_from([0.1, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 2, 50, 900, 60_000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.9]),
    typical_p=st.sampled_from([1.0, 1.0, 0.9, 0.2]),
    banned=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_the_kernels_choose_the_same_token(
    instruction_set: str, seed: int, size: int, scale: float, coarse: bool, banned: int, **fields: float
) -> None:
    logits = logits_of(seed, size, scale)
    if coarse:  # many are equal
        logits = np.round(logits)
    logits[np.random.default_rng(seed).integers(0, size, banned)] = -np.inf
    if not np.isfinite(logits).any():
        return
    request = Generate(prompt="", strategy="sample", **fields)  # type: ignore[arg-type]  # top_k is a whole number
    found = differences(request, logits, np.random.default_rng(seed).random(8), instruction_set, [])
    assert all(of_a_last_bit for *_, of_a_last_bit in found), found
    greedy = native.choose(logits[None], [0], [native.Choice()], instruction_set=instruction_set)
    assert greedy == [int(logits.argmax())]


@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_draws_are_those_of_numpy(kind: str) -> None:
    rounded, others = compare(kind, 10_000, instruction_sets()[0])
    assert rounded < 5 and others == 0


def test_what_equals_the_smallest_that_is_kept_is_kept() -> None:
    logits = np.repeat(np.array([3, 2, 1, 0], np.float32), [1, 30, 40, 9000])[
        np.random.default_rng(0).permutation(9071)
    ]
    uniforms = np.linspace(0, 1, 400, endpoint=False)
    for fields, lowest in (({"top_k": 2}, 2), ({"top_k": 32}, 1), ({"top_p": 0.01}, 2), ({"typical_p": 0.5}, 0)):
        request = Generate(prompt="", strategy="sample", **{"top_k": 0, **fields})  # type: ignore[arg-type]
        assert differences(request, logits, uniforms, instruction_sets()[0], []) == []
        ids, weights = candidates(logits, request)
        tokens = [int(ids[invert(weights, uniform)]) for uniform in uniforms.tolist()]
        assert logits[tokens].min() == lowest == logits[ids].min()


def test_random_numbers_drawn_together_are_those_drawn_one_by_one() -> None:
    alone = np.random.Generator(np.random.PCG64(5))
    sampler = sampler_of(Generate(prompt="", strategy="sample"), seed=5)
    assert [sampler.choice([]).uniform for _ in range(200)] == [alone.random() for _ in range(200)]


@pytest.mark.parametrize("instruction_set", instruction_sets())
@given(
    seed=st.integers(0, 10_000),
    penalties=st.tuples(
        st.sampled_from([1.0, 0.7, 1.3]), st.sampled_from([0.0, -1.5, 0.6]), st.sampled_from([0.0, -0.3, 0.1])
    ),
    greedy=st.booleans(),
    size=st.integers(0, 3),
)
@settings(max_examples=60, deadline=None)
def test_the_kernels_change_logits_as_the_processors_do(
    instruction_set: str, seed: int, penalties: tuple[float, float, float], greedy: bool, size: int
) -> None:
    names = "repetition_penalty", "presence_penalty", "frequency_penalty"
    fields: dict[str, Any] = dict(zip(names, penalties, strict=True))
    strategy: Literal["greedy", "sample"] = "greedy" if greedy else "sample"
    request = Generate(
        prompt="", strategy=strategy, logit_bias=[(3, 2.5), (7, -1), (3, 0.1)], min_new_tokens=9,
        no_repeat_ngram_size=size, **fields,
    )  # fmt: skip
    seen = np.random.default_rng(seed).integers(0, 30, 40).tolist()
    bad_words = [[20], seen[20:23], [seen[20], 2], [400, seen[20], 8]]
    processors, other = (processors_of(request, seen[:20], bad_words) for _ in range(2))
    sampler = Sampler(request, seed, other)
    for length in (21, 22, 40):
        logits = logits_of(seed + length)
        want = processors.apply(logits, seen[:length])
        choice = sampler.choice(seen[:length])
        tokens = native.choose(logits[None], [0], [choice], instruction_set=instruction_set)
        np.testing.assert_array_equal(logits, want)
        ids, weights = candidates(want, request)
        assert tokens == [int(want.argmax()) if greedy else int(ids[invert(weights, choice.uniform)])]


@pytest.mark.parametrize("name", ["biased", "banned", "seen"])
@pytest.mark.parametrize("token", [-1, 9])
def test_the_kernels_refuse_what_is_no_token(name: str, token: int) -> None:
    unknown = (ctypes.c_int32 * 1)(token)
    at = ctypes.addressof(unknown)
    choice = native.Choice(repetition=1, biases=at, counts=at, **{name: at, f"{name}_count": 1})
    logits = np.zeros((1, 9), np.float32)
    assert native.choose(logits, [0], [choice]) == [-1] and not logits.any()


@pytest.mark.parametrize("instruction_set", instruction_sets())
@pytest.mark.parametrize("size", [3, 64, 100])
def test_the_kernels_refuse_what_is_no_number(instruction_set: str, size: int) -> None:
    logits = np.zeros((3, size), np.float32)
    logits[0, -1], logits[1] = np.nan, -np.inf
    assert native.choose(logits, [0, 1, 2], [native.Choice()] * 3, instruction_set=instruction_set) == [-1, -1, 0]
    choice = native.Choice(uniform=0.5, top_p=1, typical_p=1, temperature=1, top_k=50)
    assert native.choose(logits, [0, 1], [choice] * 2, instruction_set=instruction_set) == [-1, -1]


def test_a_models_threads_choose_what_one_thread_chooses(tmp_path: Path) -> None:
    arch = Architecture(
        layers=1, heads=1, width=32, inner=32, context=8, vocabulary=VOCABULARY, epsilon=1e-5, ends=(0,)
    )
    weights = {name: np.zeros(shape, np.float32) for name, shape in expected_shapes(arch).items()}
    Layout(arch, weights, "int8", lambda *_: None).write(tmp_path)
    engine = native.NativeEngine(arch, tmp_path / FILE, "int8", rows=2, threads=3)
    requests = [Generate(prompt="", strategy=s, top_k=0, top_p=0.9) for s in ("sample", "greedy", "mirostat", "sample")]
    logits = np.stack([logits_of(seed) for seed in range(4)])
    for count in (1, 4):
        alone, together = (
            sample(logits[:count], [sampler_of(r, i) for i, r in enumerate(requests[:count])], [[]] * count, by)
            for by in (None, engine)
        )
        assert alone == together
    engine.close()
