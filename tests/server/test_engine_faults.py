"""Faults of an engine that raises, gives no numbers or runs out of memory: they end only the request concerned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from protocol import messages as m
from scripts.reliability.fakes import FakeEngine, TogetherEngine
from server.engines.base import Hidden, Logits, Run
from server.link import Work
from tests.server.test_worker import ARCH, Loop

POISON = 13
KINDS = {"raises": RuntimeError("a kernel failed"), "out of memory": MemoryError(), "no numbers": None}


class Faulty(TogetherEngine):
    """Fails whenever it computes a row that begins with POISON and has at least `after` tokens."""

    def __init__(self, rows: int, kind: str, after: int) -> None:
        super().__init__(rows, ARCH.context, ARCH.vocabulary)
        self.fault = KINDS[kind]
        self.after = after

    def prefill(
        self, row: int, ids: Sequence[int], past: int, wanted: Sequence[int], hidden: Hidden | None = None
    ) -> Logits:
        logits = super().prefill(row, ids, past, wanted, hidden)
        return self._maybe(logits, [row], [past + len(ids)]) if len(logits) else logits

    def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
        return self._maybe(super().decode(ids, past, hidden), range(len(ids)), [p + 1 for p in past])

    def run(self, runs: Sequence[Run]) -> Logits:
        asked = [(run.row, run.past + index + 1) for run in runs for index in run.wanted]
        return self._maybe(super().run(runs), [row for row, _ in asked], [end for _, end in asked])

    def _maybe(self, logits: Logits, rows: Sequence[int], ends: Sequence[int]) -> Logits:
        for i, (row, end) in enumerate(zip(rows, ends, strict=True)):
            if self.cells[row, 0] == POISON and end >= self.after:
                if self.fault:
                    raise self.fault
                logits[i] = np.nan
        return logits


@pytest.mark.parametrize("after", [20, 24], ids=["in the prompt", "while it writes"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_one_ends_and_the_batch_goes_on(kind: str, after: int, capfd: pytest.CaptureFixture[str]) -> None:
    loop = Loop(engine=Faulty(4, kind, after))
    for round_ in range(25):
        prompts = {4 * round_ + i: [i + 2] * 20 for i in range(3)}
        for key, prompt in prompts.items():
            loop.ask(key, prompt_ids=prompt, max_new_tokens=12, strategy="greedy")
        loop.ask(1000, prompt_ids=[POISON] * 20, max_new_tokens=12, strategy="greedy")
        loop.turn(40)
        replies = {reply.id: reply for reply in loop.link.sent}
        assert len(loop.link.sent) == 4 and loop.scheduler.running == loop.scheduler.waiting == 0
        loop.link.sent.clear()
        failure = replies.pop(1000)
        assert isinstance(failure, m.Failure) and failure.code == "internal"
        assert failure.message.split()[-1] in capfd.readouterr().err, "the incident is in the log"
        for key, prompt in prompts.items():
            result = replies[key]
            assert isinstance(result, m.Generated) and result.ids == loop.engine.greedy(prompt, 12)


def test_what_fails_once_and_not_again_harms_nobody() -> None:
    class Once(TogetherEngine):
        failed = 0

        def decode(self, ids: Sequence[int], past: Sequence[int], hidden: Hidden | None = None) -> Logits:
            self._fail_at(12)
            return super().decode(ids, past, hidden)

        def run(self, runs: Sequence[Run]) -> Logits:
            self._fail_at(0)
            return super().run(runs)

        def _fail_at(self, calls: int) -> None:
            if len(self.calls) >= calls and self.failed < 1 + (calls > 0):
                self.failed += 1
                raise RuntimeError("a moment's weakness")

    engine = Once(4, ARCH.context, ARCH.vocabulary)
    loop = Loop(engine=engine)
    for key in range(3):
        loop.ask(key, prompt_ids=[key + 2] * 20, max_new_tokens=12, strategy="greedy")
    loop.turn(40)
    assert engine.failed == 2
    assert {r.id: r.ids for r in loop.link.sent if isinstance(r, m.Generated)} == {
        key: engine.greedy([key + 2] * 20, 12) for key in range(3)
    }


@pytest.mark.parametrize("strategy", ["beam", "sample"])
def test_searches_and_several_continuations_end_too(strategy: str) -> None:
    loop = Loop(engine=Faulty(8, "raises", 24))
    loop.ask(1, prompt_ids=[POISON] * 20, max_new_tokens=12, strategy=strategy, n=2)
    loop.ask(2, prompt_ids=[7] * 20, max_new_tokens=12, strategy="greedy")
    loop.turn(80)
    failure, result = sorted(loop.link.sent, key=lambda reply: reply.id or 0)
    assert isinstance(failure, m.Failure) and failure.code == "internal"
    assert isinstance(result, m.Generated) and result.ids == loop.engine.greedy([7] * 20, 12)
    assert loop.scheduler.running == loop.scheduler.waiting == 0


def test_a_fault_before_the_engine_is_reached_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(engine=FakeEngine(2, ARCH.context, ARCH.vocabulary))
    loop.ask(1, prompt_ids=[7] * 20, max_new_tokens=12, strategy="greedy")
    with monkeypatch.context() as patched:
        patched.setattr("server.worker.requests.Sequence", None)
        loop.ask(2, prompt_ids=[8] * 20, max_new_tokens=12, strategy="greedy")
    loop.turn(40)
    failure, result = sorted(loop.link.sent, key=lambda reply: reply.id or 0, reverse=True)
    assert isinstance(failure, m.Failure) and failure.code == "internal" and failure.id == 2
    assert isinstance(result, m.Generated) and result.ids == loop.engine.greedy([7] * 20, 12)


@pytest.mark.parametrize("strategy", ["greedy", "sample", "contrastive"])
def test_what_the_settings_make_impossible_is_no_fault(strategy: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A model of few tokens, of which none is left to come: as of a genome, with n-grams that must not come twice."""
    few = replace(ARCH, vocabulary=8)
    loop = Loop(engine=FakeEngine(8, few.context, few.vocabulary), arch=few)
    loop.ask(1, prompt_ids=[1, 2, 3], max_new_tokens=12, strategy=strategy, no_repeat_ngram_size=1, ignore_eos=True)
    loop.turn(40)
    (failure,) = loop.link.sent
    assert isinstance(failure, m.Failure) and failure.code == "bad_request"
    assert failure.message.startswith("no token is left that may come") and "incident" not in capfd.readouterr().err
    assert loop.scheduler.running == loop.scheduler.waiting == 0


def test_more_candidates_than_the_model_has_tokens_are_refused() -> None:
    few = replace(ARCH, vocabulary=8)
    loop = Loop(engine=FakeEngine(16, few.context, few.vocabulary), arch=few)
    loop.ask(1, prompt_ids=[1, 2, 3], strategy="contrastive", num_candidates=9)
    (failure,) = loop.link.sent
    assert isinstance(failure, m.Failure) and failure.code == "bad_request"
    assert failure.message == "num_candidates must be at most the model's 8 tokens"


def test_one_text_with_a_fault_ends_all_that_are_scored_with_it() -> None:
    """None of the others is computed any more, and who comes after them does not wait for them."""
    loop = Loop(engine=Faulty(2, "raises", 5))
    texts = [m.Passage(ids=[token] * 9) for token in (7, POISON, *range(20, 80))]
    loop.worker.take(Work(id=3, group=0, request=m.Score(texts=texts, bos="never")))
    loop.turn(4)
    *ready, failure = loop.link.sent
    assert [text.index for text in ready if isinstance(text, m.ScoredText)] == [0] and len(ready) == 1
    assert isinstance(failure, m.Failure) and failure.code == "internal"
    assert loop.scheduler.running == loop.scheduler.waiting == 0


def test_a_text_that_is_scored_ends_too() -> None:
    loop = Loop(engine=Faulty(2, "raises", 5))
    loop.worker.take(Work(id=3, group=0, request=m.Score(ids=[POISON] * 9, bos="never")))
    loop.turn(3)
    (failure,) = loop.link.sent
    assert isinstance(failure, m.Failure) and failure.code == "internal" and loop.scheduler.running == 0
