"""The search decoders, through a real worker loop: beams against transformers' generate, the others against their papers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

from protocol import messages as m
from server.catalogue import DEMO_FOLDER, read_architecture
from server.engines.base import Engine
from server.weights import load_engine
from tests.server.test_worker import Loop

ARCH = read_architecture(DEMO_FOLDER)
PROMPTS = [[5, 77, 300, 12], list(range(40, 60))]


@pytest.fixture(scope="module")
def reference() -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(DEMO_FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module", params=["native", "onnx"])
def engine(cache: Path, request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine, _ = load_engine(DEMO_FOLDER, ARCH, request.param, "fp32", 8, 2, cache, 1 << 30, lambda *_: None)
    yield engine
    engine.close()


class Bias(LogitsProcessor):  # transformers' own does not take token 0
    def __init__(self, biases: list[tuple[int, float]]) -> None:
        self._biases = biases

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        for token, bias in self._biases:
            scores[:, token] += bias
        return scores


def run(engine: Engine, *requests: dict[str, Any]) -> list[m.Generated]:
    """Run requests together; the results in their order."""
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
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), return_dict_in_generate=True, output_scores=True,
        pad_token_id=ARCH.vocabulary - 1, eos_token_id=ARCH.end_of_text, **fields,
    )  # fmt: skip
    found = []
    for row, beams in zip(out.sequences, out.beam_indices, strict=True):
        found.append(row[len(prompt) : len(prompt) + int((beams >= 0).sum())].tolist())
    return found, out.sequences_scores.tolist()


@pytest.mark.parametrize("stopping", ["no", "yes", "never"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, -1.5, 2.0])
def test_beams_are_those_of_transformers(engine: Engine, reference: GPT2LMHeadModel, stopping: str, penalty: float) -> None:
    for prompt in PROMPTS:
        bias = [(ARCH.end_of_text, 6.0)]
        want, want_scores = oracle(
            reference, prompt, num_beams=4, num_return_sequences=3, max_new_tokens=20, length_penalty=penalty, do_sample=False,
            early_stopping={"no": False, "yes": True, "never": "never"}[stopping], repetition_penalty=1.2,
            logits_processor=LogitsProcessorList([Bias(bias)]),
        )  # fmt: skip
        (got,) = run(
            engine,
            {
                "prompt_ids": prompt, "strategy": "beam", "n": 3, "max_new_tokens": 20, "length_penalty": penalty, "early_stopping": stopping,
                "repetition_penalty": 1.2, "logit_bias": bias,
            },
        )  # fmt: skip
        assert texts(got) == want
        np.testing.assert_allclose(scores(got), want_scores, rtol=1e-4, atol=1e-4)


def test_sampled_beams_are_those_of_transformers(engine: Engine, reference: GPT2LMHeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def gumbel(chances: torch.Tensor, num_samples: int) -> torch.Tensor:
        """torch.multinomial without replacement, by our random numbers: the first step draws for one beam."""
        p = chances[0].double().numpy()
        size = len(p) if p[ARCH.vocabulary :].any() else ARCH.vocabulary
        keys = np.full(len(p), -np.inf)
        with np.errstate(divide="ignore"):
            keys[:size] = np.log(p[:size]) - np.log(-np.log(random.random(size)))
        return torch.tensor(np.argsort(-keys, kind="stable")[:num_samples].copy())[None]

    monkeypatch.setattr(torch, "multinomial", gumbel)
    for seed in range(4):
        random = np.random.Generator(np.random.PCG64(seed))
        want, want_scores = oracle(
            reference,
            PROMPTS[0],
            num_beams=3,
            num_return_sequences=2,
            max_new_tokens=12,
            do_sample=True,
            temperature=1.2,
            top_k=30,
            top_p=0.95,
        )
        (got,) = run(
            engine,
            {
                "prompt_ids": PROMPTS[0], "strategy": "beam_sample", "num_beams": 3, "n": 2, "max_new_tokens": 12, "temperature": 1.2, "top_k": 30,
                "top_p": 0.95, "seed": seed,
            },
        )  # fmt: skip
        assert texts(got) == want
        np.testing.assert_allclose(scores(got), want_scores, rtol=1e-4, atol=1e-4)


def forward(reference: GPT2LMHeadModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities after the last token, and all hidden states: computed anew, without any cache."""
    with torch.inference_mode():
        out = reference(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    return torch.log_softmax(out.logits[0, -1].double(), -1), out.hidden_states[-1][0].double()


def test_diverse_beams_are_those_of_the_paper(engine: Engine, reference: GPT2LMHeadModel) -> None:
    """Vijayakumar et al. 2016, equation 3 with Hamming diversity, at a fixed length."""
    prompt, groups, size, strength, length = PROMPTS[0], 2, 2, 1.5, 8
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
                options += [([*tokens, int(t)], score + float(v)) for v, t in zip(best.values, best.indices, strict=True)]
            beams[g] = sorted(options, key=lambda o: -o[1])[:size]
            taken += [tokens[-1] for tokens, _ in beams[g]]
    want = sorted((beam for group in beams for beam in group), key=lambda b: -b[1])
    (got,) = run(
        engine,
        {
            "prompt_ids": prompt, "strategy": "diverse_beam", "num_beams": 4, "n": 4, "diversity_penalty": strength, "max_new_tokens": length,
            "ignore_eos": True, "length_penalty": 0.0,
        },
    )  # fmt: skip
    assert texts(got) == [tokens for tokens, _ in want]
    np.testing.assert_allclose(scores(got), [score for _, score in want], atol=1e-3)


def test_contrastive_search_is_that_of_the_paper(engine: Engine, reference: GPT2LMHeadModel) -> None:
    """Su et al. 2022, equation 5."""
    prompt, k, alpha = PROMPTS[1], 5, 0.6
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
            "prompt_ids": prompt, "strategy": "contrastive", "num_candidates": k, "penalty_alpha": alpha, "max_new_tokens": 16, "ignore_eos": True,
        },
    )  # fmt: skip
    assert got.ids == ids[len(prompt) :]


def test_searches_and_others_run_together_as_they_do_alone(engine: Engine) -> None:
    requests = [
        {"prompt_ids": [9, 8, 7], "strategy": "greedy", "max_new_tokens": 14, "speculate": 8},
        {"prompt_ids": PROMPTS[0], "strategy": "beam", "num_beams": 3, "max_new_tokens": 9},
        {"prompt_ids": PROMPTS[1], "strategy": "contrastive", "num_candidates": 3, "max_new_tokens": 11},
        {"prompt_ids": [1, 2], "strategy": "sample", "seed": 3, "max_new_tokens": 30},
    ]
    together = run(engine, *requests)
    assert [texts(r) for r in together] == [texts(run(engine, request)[0]) for request in requests]
