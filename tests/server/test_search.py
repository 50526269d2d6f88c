"""Search decoders through a real worker loop: beams against transformers' generate, the others against their papers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList
from transformers.generation.utils import GenerateBeamDecoderOnlyOutput

from protocol import messages as m
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.engines.base import Engine
from server.engines.load import load_engine
from server.worker.search import Lane
from tests.server.test_worker import Loop

ARCH = read_architecture(DEMO_FOLDER)
PROMPTS = [[5, 77, 300, 12], list(range(40, 60))]


@pytest.fixture(scope="module", params=["native", "onnx"])
def engine(cache: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = load_engine(DEMO_FOLDER, ARCH, request.param, "fp32", 8, 1, cache, 1 << 30, lambda *_: None).engine
    yield engine
    engine.close()


class Bias(LogitsProcessor):  # type: ignore[misc]  # it is Any; the library's own leaves token 0 out
    def __init__(self, biases: list[tuple[int, float]]) -> None:
        self._biases = biases

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for token, bias in self._biases:
            scores[:, token] += bias
        return scores


def run(engine: Engine, *requests: dict[str, Any]) -> list[m.Generated]:
    """Run requests together; return the results in their order."""
    loop = Loop(engine=engine)
    for i, fields in enumerate(requests):
        loop.ask(i, **fields)
    loop.turn(400)
    replies = {r.id: r for r in loop.link.sent if isinstance(r, m.Generated | m.Failure)}
    found = [replies[i] for i in range(len(requests))]
    assert all(isinstance(r, m.Generated) for r in found), found
    return found  # type: ignore[return-value]


def texts(result: m.Generated) -> list[list[int]]:
    return [result.ids, *(other.ids for other in result.others)]


def scores(result: m.Generated) -> list[float]:
    return [score for score in (result.score, *(other.score for other in result.others)) if score is not None]


def oracle(reference: GPT2LMHeadModel, prompt: list[int], **fields: Any) -> tuple[list[list[int]], list[float]]:
    out = reference.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        return_dict_in_generate=True,
        output_scores=True,
        pad_token_id=ARCH.vocabulary - 1,
        eos_token_id=list(ARCH.ends),
        **fields,
    )
    assert isinstance(out, GenerateBeamDecoderOnlyOutput)
    assert out.beam_indices is not None and out.sequences_scores is not None
    found = []
    for row, beams in zip(out.sequences, out.beam_indices, strict=True):  # [tokens] each
        found.append(row[len(prompt) : len(prompt) + int((beams >= 0).sum())].tolist())
    return found, out.sequences_scores.tolist()


@pytest.mark.parametrize("stopping", ["no", "yes", "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, -1.5, 2.0])
def test_beams_are_those_of_transformers(
    engine: Engine, reference: GPT2LMHeadModel, stopping: str, penalty: float
) -> None:
    for prompt in PROMPTS:
        bias = [(ARCH.ends[0], 6.0)]
        want, want_scores = oracle(
            reference,
            prompt,
            num_beams=4,
            num_return_sequences=3,
            max_new_tokens=20,
            length_penalty=penalty,
            do_sample=False,
            early_stopping={"no": False, "yes": True, "never": "never"}[stopping],
            repetition_penalty=1.2,
            logits_processor=LogitsProcessorList([Bias(bias)]),
        )
        (got,) = run(
            engine,
            {
                "prompt_ids": prompt,
                "strategy": "beam",
                "n": 3,
                "max_new_tokens": 20,
                "length_penalty": penalty,
                "early_stopping": stopping,
                "repetition_penalty": 1.2,
                "logit_bias": bias,
            },
        )
        assert texts(got) == want
        np.testing.assert_allclose(scores(got), want_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "cuts",
    [
        {"top_k": 30, "top_p": 0.95},
        {"top_k": 1},
        {"top_k": 0, "top_p": 0.05},
        {"top_k": 0, "min_p": 0.9},
        {"top_k": 0, "typical_p": 0.05},
    ],
    ids=str,
)  # the narrow ones: two tokens are left all the same
def test_sampled_beams_are_those_of_transformers(
    engine: Engine, reference: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch, cuts: dict[str, float]
) -> None:
    def gumbel(chances: torch.Tensor, num_samples: int) -> torch.Tensor:
        """torch.multinomial without replacement, by our random numbers: the first step draws for one beam."""
        p = chances[0].double().numpy()
        size = len(p) if p[ARCH.vocabulary :].any() else ARCH.vocabulary
        keys = np.full(len(p), -np.inf)
        with np.errstate(divide="ignore"):
            keys[:size] = np.log(p[:size]) - np.log(-np.log(random.random(size)))
        return torch.tensor(np.argsort(-keys, kind="stable")[:num_samples].copy())[None]

    monkeypatch.setattr(torch, "multinomial", gumbel)
    for seed in range(3):
        random = np.random.Generator(np.random.PCG64(seed))
        want, want_scores = oracle(
            reference,
            PROMPTS[0],
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=12,
            do_sample=True,
            temperature=1.2,
            **cuts,
        )
        (got,) = run(
            engine,
            {
                "prompt_ids": PROMPTS[0],
                "strategy": "beam_sample",
                "num_beams": 3,
                "n": 2,
                "max_new_tokens": 12,
                "temperature": 1.2,
                "seed": seed,
                **cuts,
            },
        )
        assert texts(got) == want
        np.testing.assert_allclose(scores(got), want_scores, rtol=1e-4, atol=1e-4)


def forward(reference: GPT2LMHeadModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities after the last token, and all hidden states: computed without any cache."""
    with torch.inference_mode():
        out = reference(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return torch.log_softmax(out.logits[0, -1].double(), -1), out.hidden_states[-1][0].double()


def test_diverse_beams_are_those_of_the_paper(engine: Engine, reference: GPT2LMHeadModel) -> None:
    """Vijayakumar et al. 2016, equation 3 with Hamming diversity, at a fixed length."""
    prompt = PROMPTS[0]
    groups = 2
    size = 2
    strength = 1.5
    length = 8
    beams: list[list[tuple[list[int], float]]] = [[([], 0.0)] for _ in range(groups)]
    for _ in range(length):
        taken: list[int] = []
        for g in range(groups):
            options = []
            for tokens, score in beams[g]:
                logs = forward(reference, [*prompt, *tokens])[0].clone()
                for token in taken:
                    logs[token] -= strength
                best = torch.topk(logs, 2 * size)
                options += [
                    ([*tokens, int(t)], score + float(v)) for v, t in zip(best.values, best.indices, strict=True)
                ]
            beams[g] = sorted(options, key=lambda o: -o[1])[:size]
            taken += [tokens[-1] for tokens, _ in beams[g]]
    want = sorted((beam for group in beams for beam in group), key=lambda b: -b[1])
    (got,) = run(
        engine,
        {
            "prompt_ids": prompt,
            "strategy": "diverse_beam",
            "num_beams": 4,
            "n": 4,
            "diversity_penalty": strength,
            "max_new_tokens": length,
            "ignore_eos": True,
            "length_penalty": 0.0,
        },
    )
    assert texts(got) == [tokens for tokens, _ in want]
    np.testing.assert_allclose(scores(got), [score for _, score in want], atol=1e-3)


def test_contrastive_search_is_that_of_the_paper(engine: Engine, reference: GPT2LMHeadModel) -> None:
    """Su et al. 2022, equation 5."""
    prompt = PROMPTS[1]
    k = 5
    alpha = 0.6
    ids = list(prompt)
    for _ in range(16):
        logs, context = forward(reference, ids)
        best = torch.topk(logs.exp(), k)
        ranks = []
        for chance, token in zip(best.values, best.indices, strict=True):
            state = forward(reference, [*ids, int(token)])[1][-1]
            likeness = torch.nn.functional.cosine_similarity(context, state[None], dim=1).max()
            ranks.append((1 - alpha) * float(chance) - alpha * float(likeness))
        ids.append(int(best.indices[int(np.argmax(ranks))]))
    (got,) = run(
        engine,
        {
            "prompt_ids": prompt,
            "strategy": "contrastive",
            "num_candidates": k,
            "penalty_alpha": alpha,
            "max_new_tokens": 16,
            "ignore_eos": True,
        },
    )
    assert got.ids == ids[len(prompt) :]


def test_beams_heed_stop_strings_from_the_least_number_of_tokens_on(engine: Engine) -> None:
    """Each text ends with the first that is complete after it, not with one that was there before."""
    fields: dict[str, Any] = {"prompt_ids": PROMPTS[0], "strategy": "beam", "n": 3, "max_new_tokens": 24}
    (plain,) = run(engine, fields)
    stop = plain.text.strip()[1]  # a letter that comes early
    (early,) = run(engine, {**fields, "stop": [stop]})
    (late,) = run(engine, {**fields, "stop": [stop], "min_new_tokens": 12})
    assert min(len(ids) for ids in texts(early)) < 12 <= min(len(ids) for ids in texts(late))
    assert "stop" in {late.finish_reason, *(other.finish_reason for other in late.others)}


@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_a_contrastive_search_takes_no_token_without_a_chance(engine: Engine, alpha: float) -> None:
    """Two tokens are left, and four are weighed: the others would win by being unlike the text."""
    (got,) = run(
        engine,
        {
            "prompt_ids": PROMPTS[1],
            "strategy": "contrastive",
            "penalty_alpha": alpha,
            "max_new_tokens": 12,
            "ignore_eos": True,
            "logit_bias": [(10, 500.0), (11, 500.0), (0, -1000.0), (1, -1000.0)],
        },
    )
    assert set(got.ids) <= {10, 11}


@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_a_contrastive_search_takes_no_forbidden_token(engine: Engine, alpha: float) -> None:
    """Tokens that have come are forbidden here, and all but three have no chance: these come, once each."""
    (got,) = run(
        engine,
        {
            "prompt_ids": PROMPTS[1],
            "strategy": "contrastive",
            "penalty_alpha": alpha,
            "max_new_tokens": 3,
            "ignore_eos": True,
            "no_repeat_ngram_size": 1,
            "logit_bias": [(10, 500.0), (11, 500.0), (12, 500.0)],
        },
    )
    assert sorted(got.ids) == [10, 11, 12]


def test_searches_and_others_run_together_as_they_do_alone(engine: Engine) -> None:
    requests = [
        {"prompt_ids": [9, 8, 7], "strategy": "greedy", "max_new_tokens": 14, "speculate": 8},
        {"prompt_ids": PROMPTS[0], "strategy": "beam", "num_beams": 3, "max_new_tokens": 9},
        {"prompt_ids": PROMPTS[1], "strategy": "contrastive", "num_candidates": 3, "max_new_tokens": 11},
        {"prompt_ids": [1, 2], "strategy": "sample", "seed": 3, "max_new_tokens": 30},
    ]
    together = run(engine, *requests)
    assert [texts(r) for r in together] == [texts(run(engine, request)[0]) for request in requests]


def test_a_stream_of_beams_is_what_all_agree_on(engine: Engine) -> None:
    loop = Loop(engine=engine)
    beams: dict[str, Any] = {"strategy": "beam", "n": 2, "max_new_tokens": 24}
    loop.ask(1, prompt_ids=PROMPTS[0], **beams, stream=True, stream_interval_ms=0)
    loop.turn(40)
    *pieces, result = [r for r in loop.link.sent if r.id == 1]
    assert isinstance(result, m.Generated)
    for index, (ids, text) in enumerate([(result.ids, result.text), (result.others[0].ids, result.others[0].text)]):
        own = [p for p in pieces if isinstance(p, m.Tokens) and p.index == index]
        assert [i for p in own for i in p.ids] == ids
        assert "".join(p.text for p in own) == text
        assert len(own) > 1
    assert result.ledger.mean_batch == 4 and result.ledger.new_tokens == 24 and result.ledger.decode_ms > 0
    assert loop.scheduler.running == 0


def test_beams_end_at_a_stop_string(engine: Engine) -> None:
    request = {
        "prompt_ids": PROMPTS[0],
        "strategy": "beam",
        "max_new_tokens": 24,
        "ignore_eos": True,
        "length_penalty": 0.0,
    }
    (free,) = run(engine, request)
    stop = free.text[8:11]
    (stopped,) = run(engine, {**request, "stop": [stop], "n": 4, "early_stopping": "yes"})
    assert any(reason == "stop" for reason in (stopped.finish_reason, *(o.finish_reason for o in stopped.others)))
    assert all(stop not in text for text in (stopped.text, *(o.text for o in stopped.others)))


@pytest.mark.parametrize("strategy", ["beam", "contrastive"])
def test_a_cancelled_search_returns_what_there_is(engine: Engine, strategy: str) -> None:
    for turns in (0, 1, 6):
        loop = Loop(engine=engine)
        loop.ask(1, prompt_ids=PROMPTS[0], strategy=strategy, n=2 if strategy == "beam" else 1, max_new_tokens=50)
        loop.turn(turns)
        loop.cancel(1)
        loop.turn(1)
        (reply,) = loop.link.sent
        if turns:
            assert isinstance(reply, m.Generated) and reply.finish_reason == "cancelled" and len(reply.ids) <= turns
        else:
            assert isinstance(reply, m.Failure) and reply.code == "cancelled"
        assert (loop.scheduler.running, loop.scheduler.waiting) == (0, 0)


def test_a_fault_in_a_search_costs_its_own_request(engine: Engine) -> None:
    loop = Loop(engine=engine)
    loop.ask(1, prompt_ids=PROMPTS[0], strategy="beam", max_new_tokens=20)
    loop.ask(2, prompt_ids=PROMPTS[1], strategy="greedy", max_new_tokens=10)
    loop.turn(3)
    lane = loop.scheduler.find(1)[0]
    assert isinstance(lane, Lane)
    lane.search.proceed = None  # type: ignore[method-assign, assignment]  # a fault
    loop.turn(20)
    replies = {r.id: r for r in loop.link.sent}
    failure = replies[1]
    assert isinstance(failure, m.Failure) and failure.code == "internal" and isinstance(replies[2], m.Generated)
    assert loop.scheduler.running == 0


def test_a_search_waits_for_all_its_rows_and_more_than_there_are_is_refused(engine: Engine) -> None:
    loop = Loop(engine=engine)
    for i in range(1, 6):
        loop.ask(i, prompt_ids=[i], strategy="greedy", max_new_tokens=6 * i, ignore_eos=True)
    loop.ask(6, prompt_ids=PROMPTS[0], strategy="beam", num_beams=6, max_new_tokens=4)
    loop.ask(7, prompt_ids=PROMPTS[0], strategy="beam", num_beams=9, max_new_tokens=4)
    (refusal,) = loop.link.sent
    assert isinstance(refusal, m.Failure) and refusal.code == "bad_request" and "--rows" in refusal.message
    loop.turn(80)
    order = [r.id for r in loop.link.sent[1:] if r.id is not None]
    assert sorted(order) == [1, 2, 3, 4, 5, 6] and order.index(6) > order.index(3)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"strategy": "beam", "n": 5}, "num_beams"),
        ({"strategy": "contrastive", "n": 2}, "contrastive"),
        ({"strategy": "beam", "logprobs": 1}, "score"),
        ({"strategy": "diverse_beam", "num_beams": 5}, "multiple"),
    ],
)
def test_what_cannot_be_searched_is_refused(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        m.Generate(prompt="a", **fields)
