"""Everybody's work takes turns in a worker, whatever it is, and comes to the same as alone."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from protocol import messages as m
from protocol.errors import BadRequest
from server.link import Work
from server.worker.reader import LONG_CHARACTERS, LONG_TOKENS, Reader, is_long
from server.worker.text import Spans, Text
from server.worker.turns import Turns
from server.worker.windows import Windows, check_cost
from tests.server.test_worker import Loop


def test_groups_take_turns_in_a_line() -> None:
    line: Turns[str] = Turns()
    for item in ("a1", "a2", "a3", "b1", "c1"):
        line.add(ord(item[0]), item)
    assert list(line) == ["a1", "b1", "c1", "a2", "a3"] and len(line) == 5
    line.take(ord("a"), "a2")
    line.drop(ord("c"), "c1")
    assert [line.take_next(), line.take_next()] == ["b1", "a1"] and ord("c") not in line
    line.add(ord("b"), "b2")
    assert list(line) == ["a3", "b2"] and line.has_others(ord("a"))


tokens = st.lists(st.integers(1, 90), min_size=2, max_size=120)
requests = st.one_of(
    st.builds(
        lambda ids, new: m.Generate(prompt_ids=ids, max_new_tokens=new, strategy="greedy"), tokens, st.integers(1, 9)
    ),
    st.builds(
        lambda ids, beams: m.Generate(prompt_ids=ids, max_new_tokens=5, strategy="beam", num_beams=beams),
        tokens,
        st.integers(2, 4),
    ),
    st.builds(lambda ids: m.Generate(prompt_ids=ids, max_new_tokens=5, strategy="greedy", deterministic=True), tokens),
    st.builds(lambda ids, stride: m.Score(ids=ids, stride=stride), tokens, st.integers(1, 40)),
    st.builds(
        lambda texts, context: m.Score(texts=[m.Passage(ids=ids, context_ids=context) for ids in texts]),
        st.lists(tokens, min_size=1, max_size=4),
        st.just([7] * 40) | tokens,
    ),
)


def told(reply: object) -> Any:
    """What a reply says of the request alone."""
    if isinstance(reply, m.Generated):
        return reply.ids, reply.finish_reason, reply.score
    assert isinstance(reply, m.Scored), reply
    return reply.logprobs, reply.sum, reply.tokens


def run(plan: list[tuple[m.Generate | m.Score, int, int]], rows: int) -> dict[int, Any]:
    """Ask each after some steps of those before it; return what was told to each."""
    loop = Loop(rows=rows)
    loop.scheduler.tokens_per_ms = 0.2
    for request_id, (request, group, steps) in enumerate(plan):
        loop.worker.take(Work(id=request_id, group=group, request=request))
        loop.turn(steps)
    for _ in range(5000):
        if not (loop.scheduler.running or loop.scheduler.waiting):
            break
        loop.turn()
        loop.scheduler.tokens_per_ms = 0.2
    return {
        reply.id: told(reply)
        for reply in loop.link.sent
        if isinstance(reply, m.Result | m.Failure) and reply.id is not None
    }


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(requests, st.integers(0, 3), st.integers(0, 6)), max_size=12), st.integers(4, 6))
def test_in_company_and_alone_it_comes_to_the_same(
    plan: list[tuple[m.Generate | m.Score, int, int]], rows: int
) -> None:
    """With prompts half done in rows of their own, and searches that need rows beside each other."""
    found = run(plan, rows)
    assert set(found) == set(range(len(plan)))
    for request_id, (request, _, _) in enumerate(plan):
        assert found[request_id] == run([(request, 0, 0)], rows)[0]


def work(request_id: int, group: int) -> Work:
    return Work(id=request_id, group=group, request=m.Tokenize(text="x"))


def test_long_texts_are_read_in_turns_and_beside_the_loop() -> None:
    begun: list[int] = []
    go, reads = threading.Semaphore(0), threading.Event()

    def read(given: Work) -> Callable[[], None]:
        assert threading.current_thread() is not threading.main_thread()
        reads.set()
        go.acquire()
        begun.append(given.id)
        return lambda: None

    reader = Reader(read)
    for request_id, group in enumerate([1, 1, 1, 1, 2, 3]):
        reader.add(work(request_id, group))
    assert reads.wait(20) and len(reader) == 6 and not list(reader.take())
    assert not reader.cancel(0), "it is being read"
    assert reader.cancel(2) and not reader.cancel(2) and len(reader) == 5, "it is not read"
    go.release(5)
    taken: list[tuple[int, bool]] = []
    give_up = time.monotonic() + 20
    while len(taken) < 5 and time.monotonic() < give_up:
        taken += [(request_id, cancelled) for request_id, _, cancelled in reader.take()]
    assert begun[0] == 0 and set(begun[1:3]) >= {4} and begun.index(5) < begun.index(3), "each group in turn"
    assert dict(taken) == {0: True, 1: False, 3: False, 4: False, 5: False} and not len(reader)


@pytest.mark.usefixtures("no_threads")
def test_where_no_thread_can_be_made_a_long_text_is_read_all_the_same() -> None:
    reader = Reader(lambda _: lambda: None)
    for request_id in (1, 2):
        reader.add(work(request_id, 1))
        assert [(found, cancelled) for found, _, cancelled in reader.take()] == [(request_id, False)]
    assert not len(reader)


def test_short_requests_do_not_wait_for_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its length nor the kind of its request matters, and it has the same tokens as ever."""
    loop = Loop(rows=4)
    long = "Shall I compare thee to a summer's day? " * (LONG_CHARACTERS // 30)
    expected = loop.worker._requests._text.encode(long)
    held = threading.Event()
    encoding, spans_of_tokens = Text._encoding, Text.spans_of_tokens

    def slow(self: Text, text: str, *, specials: bool = True) -> Any:
        if len(text) >= LONG_CHARACTERS or not specials:
            assert held.wait(30)
        return encoding(self, text, specials=specials)

    def of_tokens(self: Text, tokens: Sequence[int]) -> Spans:
        assert held.wait(30)
        return spans_of_tokens(self, tokens)

    monkeypatch.setattr(Text, "_encoding", slow)
    monkeypatch.setattr(Text, "spans_of_tokens", of_tokens)
    late: list[m.OfModel] = [
        m.Tokenize(text=long),
        m.Score(text=long),
        m.Generate(prompt=long, max_new_tokens=1, truncate="left"),
        m.Tokenize(text="<|endoftext|>", specials=False),
        m.Tokenize(ids=[1] * LONG_TOKENS),
    ]
    for request_id, request in enumerate(late):
        loop.worker.take(Work(id=request_id, group=1, request=request))
    loop.ask(10, group=2, prompt="Shall I", max_new_tokens=3)
    loop.turn(10)
    assert [reply.id for reply in loop.link.sent] == [10]
    loop.cancel(2)
    assert [reply.id for reply in loop.link.sent] == [10, 2], "what is cancelled is not read first"
    held.set()
    give_up = time.monotonic() + 20
    while len(loop.link.sent) < 1 + len(late) and time.monotonic() < give_up:
        loop.turn()
    replies = {reply.id: reply for reply in loop.link.sent}
    assert isinstance(replies[0], m.Tokenized) and replies[0].ids == expected
    assert isinstance(replies[1], m.Scored) and replies[1].ids == expected
    assert isinstance(replies[2], m.Failure) and replies[2].code == "cancelled"
    assert isinstance(replies[3], m.Tokenized) and len(replies[3].ids) > 1
    assert isinstance(replies[4], m.Tokenized) and replies[4].ids == [1] * LONG_TOKENS


def test_many_bad_words_take_as_long_to_read_as_a_long_text() -> None:
    """64 of 200 characters took 39 ms of everybody's, in the loop."""
    few = m.Generate(prompt="x", bad_words=["thou"] * 8)
    many, long = (m.Generate(prompt="x", bad_words=words) for words in (["thou"] * 64, ["y" * 200] * 16))
    assert [is_long(request) for request in (few, many, long)] == [False, True, True]


def test_texts_that_are_nearly_long_are_not_all_read_before_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dozens at once held everybody's texts up for seconds."""
    loop = Loop(rows=4)
    here: list[bool] = []
    encoding = Text._encoding

    def noted(self: Text, text: str, *, specials: bool = True) -> Any:
        here.append(threading.current_thread() is threading.main_thread())
        return encoding(self, text, specials=specials)

    monkeypatch.setattr(Text, "_encoding", noted)
    nearly = m.Tokenize(text="x " * (LONG_CHARACTERS // 5))
    for request_id in range(10):
        loop.worker.take(Work(id=request_id, group=1, request=nearly))
    assert here.count(True) == 2
    give_up = time.monotonic() + 20
    while len(loop.link.sent) < 10 and time.monotonic() < give_up:
        loop.turn()
    assert {reply.id for reply in loop.link.sent} == set(range(10)) and here.count(True) == 2
    loop.worker.take(Work(id=10, group=1, request=nearly))
    assert here.count(True) == 3, "a step has come between"


def check(tokens: int, stride: int, lead: int = 0) -> None:
    check_cost(Windows(lead, tokens, stride, 1024, after=False), stride, 1024)


def test_a_score_is_bounded_by_what_it_computes() -> None:
    """A context costs only as much of it as a window has room for."""
    check(50_000, 64)
    check(1024, 1)
    check(4000, 1)
    check(3800, 1, lead=60_000)
    with pytest.raises(BadRequest, match=r"8000 tokens at a stride of 1 are 6977 windows of 1024 tokens") as refused:
        check(8000, 1)
    assert f"the limit is {m.MAX_COMPUTED:,}; a stride of 2 keeps to it" in str(refused.value)
    check(8000, 2)
    for tokens, lead in ((8000, 60_000), (60_000, 1000), (60_000, 5000)):
        with pytest.raises(BadRequest) as refused:
            check(tokens, 1, lead)
        found = re.search(r"a stride of (\d+) keeps to it", str(refused.value))
        assert found
        check(tokens, int(found[1]), lead)
    loop = Loop()
    loop.worker.take(Work(id=1, group=1, request=m.Score(ids=[5] * 8000, stride=1)))
    give_up = time.monotonic() + 20
    while not loop.link.sent and time.monotonic() < give_up:
        loop.turn()
    (reply,) = loop.link.sent
    assert isinstance(reply, m.Failure) and reply.code == "bad_request" and not loop.scheduler.waiting
