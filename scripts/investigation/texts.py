"""Prompts for the investigation's scripts, and measures of what was written after them.

The measures count tokens, not words. They say something where the weights are trained; what random weights write is
noise.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from protocol import Client
from server.catalogue.catalogue import HELD_OUT_FILE, Model
from server.catalogue.engines import REFERENCE

PROMPT_TOKENS = 32
LINES = 12
"""Lines of verse that are enough for a prompt."""
STRIDE = 37
"""Number of lines between the prompts of neighbouring seeds, which have nothing in common."""


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]


def distinct(ids: Sequence[int], n: int) -> float:
    """Return the different n-grams as a share of all (distinct-n: Li et al. 2016); 1 for a text shorter than n."""
    all_of_them = ngrams(ids, n)
    return len(set(all_of_them)) / len(all_of_them) if all_of_them else 1.0


def repetition(ids: Sequence[int]) -> float:
    """Return the share of 4-grams that the text had before (seq-rep-4: Welleck et al. 2020)."""
    return 1 - distinct(ids, 4)


def pairwise_distinct(texts: Sequence[Sequence[int]], n: int = 2) -> float:
    """Return how little two texts share: 1 less what is common of all their n-grams (Jaccard).

    Mean over all pairs; 0 for fewer than two texts.
    """
    parts = [frozenset(ngrams(ids, n)) for ids in texts]
    pairs = [1 - len(a & b) / max(1, len(a | b)) for a, b in itertools.combinations(parts, 2)]
    return statistics.mean(pairs) if pairs else 0.0


def perplexity(logprobs: Sequence[float]) -> float:
    """Return the perplexity of natural log-probabilities."""
    return math.exp(-statistics.mean(logprobs))


def quality(client: Client, model: Model, prompt: Sequence[int], ids: Sequence[int]) -> dict[str, float]:
    """Return repetition, distinct-1 to 3, and perplexity of what was written after a prompt.

    Perplexity is that under full precision, which must be loaded.
    """
    engine, precision = REFERENCE
    scored = client.score(ids=[*prompt, *ids], bos="never", model=model.name, engine=engine, precision=precision)
    logprobs = [p for p in scored.logprobs[len(prompt) :] if p is not None]
    return {
        "repetition": repetition(ids),
        **{f"distinct_{n}": distinct(ids, n) for n in (1, 2, 3)},
        "perplexity": perplexity(logprobs),
    }


def is_trained(model: Model) -> bool:
    """Return whether its texts mean anything (make_model.py names random weights so)."""
    return not model.name.startswith("random-")


def random_prompt(model: Model, seed: int | Sequence[int], tokens: int = PROMPT_TOKENS) -> list[int]:
    """Return tokens that no other seed has."""
    vocabulary = model.architecture.vocabulary if model.architecture else 1
    ids: list[int] = np.random.default_rng(seed).integers(0, vocabulary, tokens).tolist()
    return ids


def verse_prompt(client: Client, which: dict[str, Any], seed: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    """Return the beginning of some lines of verse that `demo` was not trained on; `which` is the model."""
    lines = verse()
    starts = [i for i, line in enumerate(lines) if line[:1].isalpha() and not line.isupper()][:-LINES]
    start = starts[seed * STRIDE % len(starts)]
    return client.tokenize("\n".join(lines[start : start + LINES]), **which).ids[:tokens]


@cache
def verse() -> list[str]:
    """Lines of the works held out from the training of `demo`."""
    return HELD_OUT_FILE.read_text(encoding="utf-8").splitlines()
