"""Loss of quality by a precision: an engine against a reference, on a text that the model was not trained on.

Perplexity and the Kullback-Leibler divergence of the next-token distributions are compared at every place of the text,
as llama.cpp's `perplexity --kl-divergence` does (https://github.com/ggml-org/llama.cpp/tree/master/tools/perplexity).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from protocol.errors import BadRequest
from server.engines.base import Engine
from server.worker.softmax import log_softmax

TOKENS = 4096
"""Largest number of tokens of the text that are compared."""
MIN_TOKENS = 64
MIN_CONTEXT = 8
CHUNK = 128
PROMPTS = 8
PROMPT_TOKENS = 32
NEW_TOKENS = 64


@dataclass(frozen=True)
class Comparison:
    perplexity: float
    reference_perplexity: float
    top1_agreement: float
    kl_mean: float
    kl_p99: float
    greedy_tokens: float
    greedy_limit: int
    tok_s: float
    tokens: int


def compare(engine: Engine, reference: Engine, ids: Sequence[int], progress: Callable[[int, int], None]) -> Comparison:
    """Run both over `ids`, in windows of a context; then let both continue prompts from it, greedily.

    `progress(done, total)` counts tokens. `check` has accepted the `ids`.
    """
    ids = list(ids[:TOKENS])
    prompt_tokens = min(PROMPT_TOKENS, engine.context // 2)
    limit = min(NEW_TOKENS, engine.context - prompt_tokens)
    total = len(ids) + PROMPTS * limit
    losses = []
    own_losses = []
    same = []
    divergences = []
    for begin in range(0, len(ids), engine.context):
        window = ids[begin : begin + engine.context]
        for past in range(0, len(window) - 1, CHUNK):
            chunk = window[past : past + CHUNK]
            wanted = list(range(min(len(chunk), len(window) - 1 - past)))
            successors = window[past + 1 : past + 1 + len(wanted)]
            want, got = (  # [wanted, vocabulary]
                log_softmax(e.prefill(0, chunk, past, wanted).astype(np.float64)) for e in (reference, engine)
            )
            places = np.arange(len(wanted))
            losses.append(-want[places, successors])  # [wanted], as all that follow
            own_losses.append(-got[places, successors])
            same.append(want.argmax(axis=1) == got.argmax(axis=1))
            divergences.append(np.einsum("pv,pv->p", np.exp(want), want - got))
            progress(begin + past + len(chunk), total)
    agreed, speeds = [], []
    for i in range(PROMPTS):
        first = i * (len(ids) - prompt_tokens) // PROMPTS
        prompt = ids[first : first + prompt_tokens]
        want_ids, _ = greedy(reference, prompt, limit)
        got_ids, seconds = greedy(engine, prompt, limit)
        differing = (at for at, pair in enumerate(zip(want_ids, got_ids, strict=True)) if pair[0] != pair[1])
        agreed.append(next(differing, limit))
        speeds.append((limit - 1) / max(seconds, 1e-9))
        progress(len(ids) + (i + 1) * limit, total)
    kl = np.concatenate(divergences)  # [places of the text]
    return Comparison(
        perplexity=float(np.exp(np.concatenate(own_losses).mean())),
        reference_perplexity=float(np.exp(np.concatenate(losses).mean())),
        top1_agreement=float(np.concatenate(same).mean()),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        greedy_tokens=statistics.mean(agreed),
        greedy_limit=limit,
        tok_s=statistics.median(speeds),
        tokens=len(ids),
    )


def check(ids: Sequence[int], context: int) -> None:
    """Check that there is enough to compare. Raises: BadRequest."""
    if len(ids) < MIN_TOKENS:
        raise BadRequest(f"measure: the text must have at least {MIN_TOKENS} tokens, got {len(ids)}")
    if context < MIN_CONTEXT:
        raise BadRequest(f"measure: the model's context must be at least {MIN_CONTEXT} tokens, it is {context}")


def greedy(engine: Engine, prompt: Sequence[int], count: int) -> tuple[list[int], float]:
    """Return the likeliest `count` tokens one after the other, and the seconds that all but the first took."""
    ids = [int(engine.prefill(0, prompt, 0, [len(prompt) - 1])[0].argmax())]
    began = time.perf_counter()
    while len(ids) < count:
        ids.append(int(engine.decode([ids[-1]], [len(prompt) + len(ids) - 1])[0].argmax()))
    return ids, time.perf_counter() - began
