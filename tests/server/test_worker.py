"""The worker's loop with a fake engine and a link that is a list."""

from __future__ import annotations

from pathlib import Path

import pytest

from protocol import messages as m
from server.catalogue import DEMO_FOLDER, read_architecture
from server.scheduler import Scheduler
from server.spec import Spec
from server.text import Text
from server.worker import Worker
from tests.fakes import FakeEngine

ARCH = read_architecture(DEMO_FOLDER)
SPEC = Spec("", "", "", "demo", str(DEMO_FOLDER), "fake", "none", 1, 1, "", 0)


class ListLink:
    def __init__(self) -> None:
        self.sent: list[m.FromWorker] = []

    def send(self, message: m.FromWorker) -> None:
        self.sent.append(message)


class Loop:
    """A worker whose loop is turned by hand."""

    def __init__(self, rows: int = 1) -> None:
        self.link, self.engine = ListLink(), FakeEngine(rows, ARCH.context, ARCH.vocabulary)
        text = Text(Path(DEMO_FOLDER), ARCH.vocabulary, ARCH.end_of_text)
        self.worker = Worker(SPEC, self.link, self.engine, text, "digest", ARCH.end_of_text)  # type: ignore[arg-type]

    @property
    def scheduler(self) -> Scheduler:
        return self.worker._scheduler

    def take(self, request: m.AnyRequest) -> None:
        self.worker._take(request)

    def turn(self, steps: int = 1) -> None:
        for _ in range(steps):
            for sequence in self.scheduler.reap():
                self.worker._end(sequence)
            self.worker._step()


def test_cancel_in_prefill_takes_effect_within_one_chunk() -> None:
    loop = Loop()
    loop.scheduler._tokens_per_ms = 0.2
    loop.take(m.Generate(id=1, prompt_ids=[5] * 900, max_new_tokens=5, stream=True))
    loop.turn()
    assert loop.engine.calls == ["prefill 0 0+32"]
    loop.scheduler._tokens_per_ms = 0.2
    loop.take(m.Cancel(target=1))
    loop.turn()
    assert loop.engine.calls == ["prefill 0 0+32"]
    (result,) = loop.link.sent
    assert isinstance(result, m.Generated) and result.finish_reason == "cancelled" and result.ids == []
    assert loop.scheduler.running == 0


def test_no_logits_are_asked_for_before_the_prompt_is_complete() -> None:
    loop = Loop()
    loop.scheduler._tokens_per_ms = 0.2
    loop.take(m.Generate(id=1, prompt_ids=[5] * 40, max_new_tokens=2, strategy="greedy"))
    loop.turn(6)
    assert loop.engine.calls[0] == "prefill 0 0+32" and loop.engine.calls[-1] == "decode 1"
    (result,) = loop.link.sent
    assert isinstance(result, m.Generated)
    first = loop.engine.expected([5] * 40)
    assert result.ids == [first, loop.engine.expected([*[5] * 40, first])]


def test_the_first_token_is_sent_at_once_and_later_ones_together() -> None:
    loop = Loop()
    loop.take(m.Generate(id=1, prompt_ids=[5], max_new_tokens=200, strategy="greedy", stream=True))
    loop.turn(250)
    pieces = [p for p in loop.link.sent if isinstance(p, m.Tokens)]
    assert len(pieces[0].ids) == 1
    assert len(pieces) < 100, "a fast engine's tokens are sent in pieces of 20 ms"
    assert isinstance(loop.link.sent[-1], m.Generated)
    assert [i for p in pieces for i in p.ids] == loop.link.sent[-1].ids


def test_a_refused_prompt_does_not_stop_the_loop() -> None:
    loop = Loop()
    loop.take(m.Generate(id=1, prompt_ids=[5] * 2000))
    loop.take(m.Generate(id=2, prompt_ids=[99_999]))
    loop.take(m.Generate(id=3, prompt_ids=[5], max_new_tokens=1))
    loop.turn(2)
    assert [(r.id, getattr(r, "code", "result")) for r in loop.link.sent] == [(1, "too_long"), (2, "bad_request"), (3, "result")]


@pytest.mark.parametrize("rows", [1, 3])
def test_sequences_share_the_rows(rows: int) -> None:
    loop = Loop(rows)
    for request_id in range(1, 8):
        loop.take(m.Generate(id=request_id, prompt_ids=[request_id], max_new_tokens=4 + request_id, strategy="greedy"))
    loop.turn(200)
    results = {r.id: r for r in loop.link.sent if isinstance(r, m.Generated)}
    assert set(results) == set(range(1, 8))
    for request_id, result in results.items():
        ids = [request_id]
        for token in result.ids:
            assert token == loop.engine.expected(ids)
            ids.append(token)
    assert (max(r.ledger.mean_batch for r in results.values()) > 1) == (rows > 1)
