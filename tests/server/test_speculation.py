"""Guessing ahead, which changes the number of steps that a text takes and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protocol import messages as m
from scripts.reliability.fakes import FakeEngine, ListConnection
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tokenizer import read_tokenizer
from server.engines.base import Engine, Hidden, Logits, Run
from server.engines.load import load_engine
from server.engines.native import NativeEngine
from server.link import Work
from server.worker.costs import LOOK_S, ROW_COST, Costs, price
from server.worker.loop import Worker
from server.worker.runner import MOST_LOGITS
from server.worker.sampling import Sampler, sample
from server.worker.sequence import Sequence as Written
from server.worker.softmax import softmax
from server.worker.speculation import PROBE, Guesser, Pace, PromptLookup
from server.worker.text import Text
from tests.server.test_worker import ARCH, SPEC as ONNX

SPEC = replace(ONNX, engine="native", precision="int8", threads=2, rows=3)
VERSE = "To be, or not to be: that is the question. To be, or not to be: that is the"


@pytest.fixture(scope="module")
def engine(cache: Path) -> Iterator[NativeEngine]:
    engine = load_engine(DEMO_FOLDER, ARCH, "native", "int8", 3, 1, cache, 1 << 30, lambda *_: None).engine
    assert isinstance(engine, NativeEngine)
    yield engine
    engine.close()


class Scripted:
    """Guesser that knows the text, and with `wrong_every` n is wrong at every n-th place."""

    def __init__(self, text: list[int], wrong_every: int = 0) -> None:
        self._text = text
        self._wrong_every = wrong_every

    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        guess = self._text[len(ids) : len(ids) + most]
        return [
            t + 1 if self._wrong_every and (len(ids) + i) % self._wrong_every == 0 else t for i, t in enumerate(guess)
        ]


def write(
    engine: Engine, *requests: dict[str, object], guesser: Guesser | None = None
) -> tuple[list[m.Generated], int]:
    """Run requests together; return their results and the number of steps that they took."""
    link = ListConnection()
    worker = Worker(SPEC, link, engine, Text(read_tokenizer(DEMO_FOLDER), ARCH), "digest", ARCH)
    worker.scheduler.tokens_per_ms = 10.0  # each prompt in one chunk
    worker._runner.costs = Costs(clock=lambda: 0.0)  # a token costs ROW_COST, whatever else this machine does
    for i, fields in enumerate(requests):
        worker.take(Work(id=i, group=i, request=m.Generate(**fields)))  # type: ignore[arg-type]
        for task in worker.scheduler.find(i):
            assert isinstance(task, Written)
            if guesser and task.guesser:
                task.guesser = guesser
    steps = 0
    while worker.scheduler.running or worker.scheduler.waiting:
        worker.step()
        steps += 1
    found = {r.id: r for r in link.sent if isinstance(r, m.Generated)}
    return [found[i] for i in range(len(requests))], steps


@pytest.mark.parametrize(
    "fields",
    [
        {"strategy": "greedy"},
        {"strategy": "sample", "seed": 5, "temperature": 0.6},
        {"strategy": "sample", "seed": 6, "repetition_penalty": 1.2, "frequency_penalty": 0.3, "min_new_tokens": 20},
        {"strategy": "mirostat", "seed": 7, "mirostat_tau": 2.0},
        {"strategy": "sample", "seed": 8, "temperature": 0.5, "logprobs": 3, "stop": ["death"]},
    ],
)
def test_the_text_is_the_same_to_the_last_bit(engine: NativeEngine, fields: dict[str, object]) -> None:
    common = {"prompt": VERSE, "max_new_tokens": 120, **fields}
    (plain,), _ = write(engine, {**common, "speculate": 0})
    text = [*Text(read_tokenizer(DEMO_FOLDER), ARCH).encode(VERSE), *plain.ids]
    for guesser in (None, Scripted(text), Scripted(text, wrong_every=3)):
        (quick,), steps = write(engine, common, guesser=guesser)
        assert quick.ids == plain.ids and quick.text == plain.text and quick.finish_reason == plain.finish_reason
        assert quick.logprobs == plain.logprobs
        if guesser:
            assert steps < 0.8 * len(plain.ids)


def test_a_batch_guesses_too_and_nobody_notices(engine: NativeEngine) -> None:
    requests = [{"prompt": VERSE * (i + 1), "max_new_tokens": 60, "seed": i, "temperature": 0.4} for i in range(3)]
    alone = [write(engine, {**r, "speculate": 0})[0][0] for r in requests]
    together, _ = write(engine, *requests)
    assert [r.ids for r in together] == [r.ids for r in alone]
    assert sum(r.ledger.accepted_tokens for r in together) > 0


def test_the_next_tokens_of_all_rows_are_chosen_together(engine: NativeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"prompt": VERSE, "strategy": "greedy", "max_new_tokens": 40, "ignore_eos": True}
    ((plain,), _) = write(engine, {**fields, "speculate": 0})
    text = [*Text(read_tokenizer(DEMO_FOLDER), ARCH).encode(VERSE), *plain.ids]
    chosen: list[int] = []

    def choose(logits: Logits, samplers: Sequence[Sampler], *more: Any) -> list[int | Exception]:
        chosen.append(len(samplers))
        return sample(logits, samplers, *more)

    monkeypatch.setattr("server.worker.runner.sample", choose)
    results, steps = write(engine, *[fields] * 3, guesser=Scripted(text))
    assert [result.ids for result in results] == [plain.ids] * 3
    assert len(chosen) > steps and set(chosen) == {3}


def test_a_text_that_repeats_itself_takes_fewer_steps(engine: NativeEngine) -> None:
    fields = {"prompt": VERSE * 3, "strategy": "greedy", "max_new_tokens": 200, "ignore_eos": True}
    (result,), steps = write(engine, fields)
    ledger = result.ledger
    assert 0 < ledger.accepted_tokens <= ledger.guessed_tokens
    assert steps < 160 and ledger.new_tokens == 200
    (plain,), steps = write(engine, {**fields, "speculate": 0})
    assert steps >= 200 and plain.ledger.guessed_tokens == 0


def test_the_mean_batch_is_that_of_steps_not_of_tokens(engine: NativeEngine) -> None:
    guesses = {"prompt": VERSE * 3, "strategy": "greedy", "max_new_tokens": 120, "ignore_eos": True}
    plain = {"prompt_ids": [9], "strategy": "greedy", "max_new_tokens": 10, "ignore_eos": True, "speculate": 0}
    (quick, slow), _ = write(engine, guesses, plain)
    assert quick.ledger.accepted_tokens > 0 and slow.ledger.mean_batch == 2
    steps = 119 - quick.ledger.accepted_tokens  # after the first token, each gives one and what was guessed right
    assert quick.ledger.mean_batch == pytest.approx((2 * 9 + 1 * (steps - 9)) / steps)


def test_the_context_is_not_overrun(engine: NativeEngine) -> None:
    ids = ([5, 6, 7, 8] * 256)[: ARCH.context - 40]
    (result,), _ = write(engine, {"prompt_ids": ids, "max_new_tokens": 40, "strategy": "greedy", "ignore_eos": True})
    assert len(result.ids) == 40


def test_an_engine_that_cannot_verify_is_not_asked_to() -> None:
    engine = FakeEngine(1, ARCH.context, ARCH.vocabulary)
    (result,), _ = write(engine, {"prompt_ids": [5, 6] * 10, "max_new_tokens": 8, "strategy": "greedy"})
    assert result.ledger.guessed_tokens == 0


class Verifying(FakeEngine):
    """Engine with the logits of the same few tokens after every token."""

    LOGITS = np.array([0.3, 1.0, -0.5, 0.0, 0.8], np.float32)

    def run(self, runs: Sequence[Run]) -> Logits:
        return self.some(sum(len(run.wanted) for run in runs))

    def some(self, count: int) -> Logits:
        logits = np.full((count, self.vocabulary), -np.inf, np.float32)
        logits[:, 10:15] = self.LOGITS
        return logits

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        return self.some(len(ids))

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        return self.some(len(wanted))


class Always:
    def guess(self, ids: Sequence[int], most: int) -> list[int]:
        return [11, 14, 12][:most]


def test_sampling_keeps_its_distribution() -> None:
    engine = Verifying(1, ARCH.context, ARCH.vocabulary)
    counts = np.zeros(5)
    for seed in range(60):
        (result,), _ = write(
            engine,
            {"prompt_ids": [3], "max_new_tokens": 50, "seed": seed, "top_k": 0, "ignore_eos": True},
            guesser=Always(),
        )
        assert result.ledger.guessed_tokens > 0
        counts += np.bincount(np.array(result.ids) - 10, minlength=5)
    weights = softmax(Verifying.LOGITS, 1.0).astype(float)
    expected = counts.sum() * weights / weights.sum()
    assert ((counts - expected) ** 2 / expected).sum() < 18.5, "chi-square, 4 degrees of freedom, p = 0.001"


def test_prompt_lookup_finds_the_latest_and_longest() -> None:
    lookup = PromptLookup()
    assert lookup.guess([1, 2, 3, 9, 1, 2], 4) == [3, 9, 1, 2]
    assert lookup.guess([1, 2, 3, 9, 1, 2, 7, 8, 2, 3, 5, 1, 2, 3], 2) == [9, 1], "three tokens count for more than two"
    assert lookup.guess([1, 2, 3, 9, 1, 2, 7, 8, 2, 3, 5, 1, 2, 3, 4, 5], 2) == []
    assert PromptLookup().guess([], 3) == PromptLookup().guess([1], 3) == []


def test_the_pace_follows_what_is_accepted() -> None:
    pace = Pace()
    one, eight = price(ROW_COST, 1), price(ROW_COST, 8)
    for _ in range(40):
        pace.learn(4, 4)
    assert pace.wanted(one) > pace.wanted(eight) > 8
    for _ in range(40):
        pace.learn(1, 0)
    tries = [pace.wanted(one) for _ in range(10 * PROBE)]
    assert set(tries) == {0, 1} and sum(tries) * ROW_COST < 0.05 * len(tries), "at most a twentieth is lost"
    assert pace.guessed == 200 and pace.accepted == 160


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def steps(costs: Costs, clock: Clock, threads: int, cost: float, tokens: Sequence[int], count: int = 40) -> None:
    """Note steps of one token and more, in turns, of which each further token costs that share of one."""
    for i in range(count):
        clock.now += 0.004
        n = tokens[i % len(tokens)]
        costs.note(n, threads, 2.0 * (1 + cost * (n - 1)) * (1 + 0.02 * (-1) ** i))


def test_the_cost_of_a_token_is_what_the_steps_say() -> None:
    clock = Clock()
    costs = Costs(clock)
    assert costs.of_row(2) == ROW_COST, "before anything has been measured"
    steps(costs, clock, 2, 0.066, [1, 1, 5, 8])
    clock.now += LOOK_S
    assert costs.of_row(2) == pytest.approx(0.066, abs=0.01)
    assert costs.of_row(1) == ROW_COST, "one thread is another thing"
    steps(costs, clock, 1, 0.154, [1, 3, 9])
    clock.now += LOOK_S
    assert costs.of_row(1) == pytest.approx(0.154, abs=0.015) and costs.of_row(2) == pytest.approx(0.066, abs=0.01)
    steps(costs, clock, 2, 0.136, [1, 1, 5, 8], 400)
    clock.now += LOOK_S
    assert costs.of_row(2) == pytest.approx(0.136, abs=0.01), "the memory has gone over to another state"


def test_steps_that_say_little_leave_the_cost_as_it_was() -> None:
    clock = Clock()
    costs = Costs(clock)
    for _ in range(50):
        costs.note(1, 2, 2.0)
        costs.note(40, 2, 9.0)  # more tokens than the line is for
    assert costs.of_row(2) == ROW_COST
    costs.note(2, 2, 9.0)  # one slow step, of two tokens
    clock.now += LOOK_S
    assert ROW_COST < costs.of_row(2) <= 1
    for _ in range(3000):
        clock.now += 0.02
        costs.note(1, 2, 2.0)
    assert costs.of_row(2) == pytest.approx(ROW_COST), "which counts no more"
    for tokens, ms in ((1, 9.0), (9, 1.0)):  # nonsense
        costs.note(tokens, 2, ms)
    clock.now += LOOK_S
    assert 0 < costs.of_row(2) <= 1


def test_the_worker_measures_its_steps() -> None:
    engine = Verifying(2, ARCH.context, ARCH.vocabulary)
    link = ListConnection()
    worker = Worker(SPEC, link, engine, Text(read_tokenizer(DEMO_FOLDER), ARCH), "digest", ARCH)
    worker._runner.costs = Costs(clock=lambda: 0.0)  # it guesses as much on a busy machine
    for i in range(2):
        worker.take(Work(id=i, group=i, request=m.Generate(prompt_ids=[3, 11, 14, 12] * 4, max_new_tokens=40, seed=i)))
    while worker.scheduler.running or worker.scheduler.waiting:
        worker.step()
    measured = worker._runner.costs._steps
    assert (2, 1) in measured and len(measured) > 1 and all(threads == 1 for _, threads in measured)


def test_guesses_of_many_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each guess has logits of its own, as large as the vocabulary."""
    widest = 0

    class Counting(Verifying):
        def run(self, runs: Sequence[Run]) -> Logits:
            nonlocal widest
            widest = max(widest, sum(len(run.wanted) for run in runs))
            return super().run(runs)

    monkeypatch.setattr(Pace, "wanted", lambda *_: 8)
    engine = Counting(64, ARCH.context, ARCH.vocabulary)
    requests = [
        {"prompt_ids": [3], "max_new_tokens": 30, "seed": seed, "temperature": 0.01, "ignore_eos": True}
        for seed in range(64)
    ]
    write(engine, *requests, guesser=Scripted([3] + [11] * 40))
    assert widest == 128 <= MOST_LOGITS
