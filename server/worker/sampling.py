"""Logits -> token.

The steps, their order and the tokens that each keeps are those of transformers: (processors.py,) temperature, top-k,
top-p, min-p, typical. The draw itself takes one uniform number from the sequence's own generator and inverts the
cumulative distribution in the order of token ids, so that a sequence's draws depend on its request alone. Where the
native kernels run, they choose (kernels/src/sample_body.h), with the same result; mirostat and requests that ask for
log-probabilities are left to NumPy.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator, Sequence as Many
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BadRequest
from protocol.messages import Generate
from server.catalogue.engines import native_problem
from server.engines import native
from server.engines.base import Engine, Logits
from server.worker.processors import NONE_LEFT, Processors, none_left
from server.worker.softmax import Weights, log_softmax, softmax

NATIVE = not native_problem()
Ids = NDArray[np.int64]
BLOCK = 256
DRAWN = 64
"""Random numbers drawn at a time: drawing one alone costs as much as 60 together."""
TINY = float(np.finfo(np.float32).tiny)
SORTED = 512
"""Largest number of values that are sorted to find the nearest ones to a value."""
COLDEST = 1e-5
"""Temperature below which only the likeliest token has a probability that a float can hold."""


@dataclass(frozen=True)
class Explanation:
    """Natural log-probability of a token, and (token, log-probability) of the likeliest at its place, best first."""

    logprob: float
    top: list[tuple[int, float]]


class Sampler:
    """Sampling state of one sequence: its settings, its random numbers, and its processors with what they remember."""

    def __init__(self, request: Generate, seed: int, processors: Processors) -> None:
        self.request = request
        self._processors = processors
        greedy = request.strategy == "greedy" or request.temperature < COLDEST
        self._uniforms = None if greedy else _uniforms(seed)
        self._mirostat = 2 * request.mirostat_tau
        """Largest surprise, in bits, that mirostat lets through."""
        self.plain = greedy and not processors.active and request.logprobs is None
        """True if an argmax is enough."""
        self.native = NATIVE and request.strategy in {"greedy", "sample"} and request.logprobs is None
        """True if the kernels can choose."""
        r = request
        plain_sample = request.strategy == "sample" and r.typical_p == 1 and r.top_k
        self.best = 0
        """Number of the largest logits that are enough to choose a token; 0: all are needed."""
        if self.native and not processors.active and not request.exact_head and (greedy or plain_sample):
            self.best = 1 if greedy else r.top_k
        cold = native.Choice(top_p=1, typical_p=1)
        self._choice = cold if greedy else native.Choice(0, r.top_p, r.typical_p, r.temperature, r.min_p, r.top_k)
        self._choice.repetition, self._choice.presence = r.repetition_penalty, r.presence_penalty
        self._choice.frequency = r.frequency_penalty
        self._biased = array("i", (token for token, _ in r.logit_bias))
        self._biases = array("f", (bias for _, bias in r.logit_bias))
        self._choice.biased, self._choice.biased_count = self._biased.buffer_info()
        self._choice.biases, _ = self._biases.buffer_info()
        self._banned = array("i")
        self.explanations: deque[Explanation] = deque()
        """Explanations of the tokens picked and not yet taken, if log-probabilities are asked for."""

    def choice(self, ids: Many[int]) -> native.Choice:
        """Return what the kernels need to choose the token that follows `ids`; take the next random number.

        It is the same object each time, and valid until the next or the sampler's end.
        """
        choice, processors = self._choice, self._processors
        if self._uniforms is not None:
            choice.uniform = next(self._uniforms)
        if processors.active:
            processors.note(ids)
            if processors.bans:
                self._banned = processors.banned(ids)
                choice.banned, choice.banned_count = self._banned.buffer_info()
            if history := processors.history:
                choice.seen, choice.seen_count = history.tokens.buffer_info()
                choice.counts, _ = history.counts.buffer_info()
        return choice

    def pick(self, logits: Logits, ids: Many[int]) -> int:
        """Choose the token that follows `ids` from float32 [vocabulary]. Raises: BadRequest if none may follow."""
        processed = self._processors.apply(logits, ids) if self._processors.active else logits
        if none_left(processed, self.request):
            raise BadRequest(NONE_LEFT)
        kept, weights = self._distribution(processed)
        index = int(weights.argmax()) if self._uniforms is None else invert(weights, next(self._uniforms))
        token = index if kept is None else int(kept[index])
        if self._uniforms is not None and self.request.strategy == "mirostat":
            surprise = -np.log2(weights[index] / weights.sum(dtype=np.float64))
            self._mirostat -= self.request.mirostat_eta * float(surprise - self.request.mirostat_tau)
        if self.request.logprobs is not None:
            if self.request.logprobs_of == "model":
                kept, processed = None, logits
            temperature = 1.0 if kept is None else self.request.temperature
            self.explanations.append(explain(processed, kept, temperature, token, self.request.logprobs))
        return token

    def _distribution(self, logits: Logits) -> tuple[Ids | None, Weights]:
        """Return the tokens that may be drawn (None: all) and their weights, [tokens] each."""
        if self._uniforms is None:
            if not np.isfinite(logits.max()):
                raise FloatingPointError("the logits are not numbers")
            return None, logits
        if self.request.strategy == "mirostat":
            return mirostat(logits, self.request.temperature, self._mirostat)
        return candidates(logits, self.request)


def sample(
    logits: Logits,
    samplers: Many[Sampler],
    histories: Many[Many[int]],
    engine: Engine | None = None,
    places: Many[int] | None = None,
) -> list[int | Exception]:
    """Choose a token with each sampler from its row of float32 [., vocabulary]; `histories` are the tokens before it.

    `places` are the samplers' rows, each at most once; None: the first ones, in order. The native engine, if it is
    given, lends its threads. If a sampler fails, its exception takes the token's place. The logits may be changed.
    """
    places = range(len(samplers)) if places is None else places
    chosen: list[int | Exception] = [-1] * len(samplers)
    native_ones: list[int] = []
    choices: list[native.Choice] = []
    for i, sampler in enumerate(samplers):
        try:
            if not sampler.native:
                own = logits[places[i]]
                chosen[i] = likeliest(own) if sampler.plain else sampler.pick(own, histories[i])
                continue
            choices.append(sampler.choice(histories[i]))
            native_ones.append(i)
        except Exception as e:  # noqa: BLE001 - whatever it is, it concerns this sequence alone
            chosen[i] = e
    if native_ones:
        choose = engine.choose if isinstance(engine, native.NativeEngine) else native.choose
        try:
            tokens = choose(logits, [places[i] for i in native_ones], choices)
        except MemoryError as e:  # their random numbers are drawn: a second try would choose others
            return [e if i in native_ones else token for i, token in enumerate(chosen)]
        for i, token in zip(native_ones, tokens, strict=True):
            chosen[i] = token if token >= 0 else _no_token(logits[places[i]], samplers[i].request)
    return chosen


def likeliest(logits: Logits) -> int:
    """Return the token with the largest of float32 [vocabulary]. Raises: FloatingPointError for what is no number."""
    token = int(logits.argmax())
    if not np.isfinite(logits[token]):  # of what is no number argmax gives the first
        raise FloatingPointError("the logits are not numbers")
    return token


def _no_token(logits: Logits, request: Generate) -> Exception:
    """Return why no token was chosen from processed logits."""
    if none_left(logits, request):
        return BadRequest(NONE_LEFT)
    return FloatingPointError("the logits are not numbers")


def _uniforms(seed: int) -> Iterator[float]:
    """Yield the random numbers of a seed, 0 <= number < 1."""
    random = np.random.Generator(np.random.PCG64(seed))
    while True:
        yield from random.random(DRAWN).tolist()


def invert(weights: Weights, uniform: float) -> int:
    """Return the index at which the running sum of the weights passes the share `uniform` of their total.

    The sums of blocks come first: a running sum over a whole vocabulary would take longer than everything else here.
    """
    blocks = np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64)  # [blocks]
    edges = np.cumsum(blocks)
    target = uniform * edges[-1]
    block = min(int(np.searchsorted(edges, target, side="right")), len(edges) - 1)
    inside = weights[block * BLOCK : (block + 1) * BLOCK]
    sums = np.cumsum(inside, dtype=np.float64) + (edges[block] - blocks[block])
    return block * BLOCK + min(int(np.searchsorted(sums, target, side="right")), len(inside) - 1)


def candidates(logits: Logits, request: Generate, *, least: int = 1) -> tuple[Ids, Weights]:
    """Return the tokens that may be drawn, `least` or more, in ascending order, and their weights.  # [tokens] each

    The weights are in proportion to the probabilities.
    """
    kept = top_k(logits, max(request.top_k, least) if request.top_k else 0)
    ids = np.arange(len(logits)) if kept is None else kept
    weights = softmax(logits if kept is None else logits[kept], request.temperature)
    if request.top_p < 1:
        kept = _at_least(least, top_p(weights, request.top_p), weights)
        ids, weights = ids[kept], weights[kept]
    if request.min_p > 0:
        kept = _at_least(least, np.flatnonzero(weights >= request.min_p * weights.max()), weights)
        ids, weights = ids[kept], weights[kept]
    if request.typical_p < 1:
        kept = typical(weights, request.typical_p, least)
        ids, weights = ids[kept], weights[kept]
    return ids, weights


def explain(logits: Logits, kept: Ids | None, temperature: float, token: int, count: int) -> Explanation:
    """Explain the choice of a token of `kept` (None: of all) by float32 [vocabulary].

    In logarithms: at low temperatures all probabilities but the largest are too small for a float. Tokens that cannot
    come are no alternatives.
    """
    ids = np.arange(len(logits)) if kept is None else kept
    logs = log_softmax(logits[ids].astype(np.float64) / temperature)  # [tokens]
    count = min(count, int(np.count_nonzero(logs > -np.inf)))
    best = np.argpartition(logs, len(logs) - count)[len(logs) - count :] if count else np.empty(0, np.int64)
    best = best[np.argsort(-logs[best], kind="stable")]  # [count]
    own = float(logs[np.searchsorted(ids, token)])
    return Explanation(own, list(zip(ids[best].tolist(), logs[best].tolist(), strict=True)))


def top_k(scores: Logits, k: int) -> Ids | None:
    """Return the indices of the k largest scores, ascending; None for all (Fan et al. 2018).

    Scores equal to the smallest of them are kept too.
    """
    if not 0 < k < len(scores):
        return None
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]
    return np.flatnonzero(scores >= threshold)


def top_p(weights: Weights, p: float) -> Ids:
    """Return the indices of the fewest weights that reach the share `p` of their sum, ascending.

    This is nucleus sampling (Holtzman et al. 2020). Weights equal to the smallest of them are kept too.
    """
    limit = (1 - p) * weights.sum(dtype=np.float64)
    # Weights below limit / n are dropped in any case, since all of them together stay below the limit: sort the rest.
    considered = weights >= limit / len(weights)
    left_out = weights[~considered].sum(dtype=np.float64)
    ascending = np.sort(weights[considered])
    dropped = int(np.searchsorted(left_out + np.cumsum(ascending, dtype=np.float64), limit, side="right"))
    return np.flatnonzero(weights >= ascending[min(dropped, len(ascending) - 1)])


def _at_least(least: int, kept: Ids, weights: Weights) -> Ids:
    """Return the kept indices, or if they are fewer those of the `least` largest weights, ascending."""
    return kept if len(kept) >= least else np.sort(np.argsort(-weights, kind="stable")[:least])


def typical(weights: Weights, mass: float, least: int = 1) -> Ids:
    """Return the indices of the weights whose surprise is nearest to the mean, ascending (Meister et al. 2023).

    They are the fewest that reach the share `mass` of the sum, but `least` or more.
    """
    p = weights / weights.sum(dtype=np.float64)  # [tokens], as `surprise` and `distance`
    surprise = -np.log(p, out=np.zeros_like(p), where=p > 0)
    distance = np.where(p > 0, np.abs(surprise - np.sum(p * surprise)), np.inf)
    reached, among = 0.0, np.arange(len(p))
    while len(among) > SORTED:  # halve around the share: sorting all of them would take several times as long
        halves = among[np.argpartition(distance[among], len(among) // 2)]
        nearer, farther = halves[: len(among) // 2], halves[len(among) // 2 :]
        share = p[nearer].sum()
        if reached + share < mass:
            reached, among = reached + share, farther
        else:
            among = nearer
    order = among[np.argsort(distance[among], kind="stable")]
    last = min(int((reached + np.cumsum(p[order]) < mass).sum()), len(order) - 1)
    limit = distance[order[last]]
    if least > 1:
        limit = max(limit, np.partition(distance, least - 1)[least - 1])
    return np.flatnonzero(distance <= limit)


def mirostat(logits: Logits, temperature: float, limit: float) -> tuple[Ids, Weights]:
    """Return the tokens whose surprise is at most `limit` bits, or the likeliest if none is, and their weights.

    This is version 2 of mirostat (Basu et al. 2021).
    """
    weights = softmax(logits, temperature)  # [vocabulary]
    bound = 2.0 ** -max(limit, 0.0) * weights.sum(dtype=np.float64)
    kept = np.flatnonzero(weights >= min(bound, 1.0))
    return kept, weights[kept]
