"""Rows and fairness, with a fake engine that notices a mixed-up row."""

from __future__ import annotations

import time

from hypothesis import given, settings, strategies as st

from protocol.messages import Generate
from server.sampling import sample
from server.scheduler import MIN_CHUNK, Scheduler
from server.sequence import Sequence
from server.text import Increments
from tests.fakes import FakeEngine


def sequence(request_id: int, prompt: list[int], new: int, vocabulary: int = 97, **settings: object) -> Sequence:
    request = Generate(id=request_id, prompt="", strategy="greedy", max_new_tokens=new, **settings)  # type: ignore[arg-type]
    return Sequence(request, list(prompt), 0, 0, Increments([b"x"] * vocabulary), vocabulary, 0, time.monotonic())


def step(scheduler: Scheduler, engine: FakeEngine) -> list[Sequence]:
    """What the worker's loop does, without its sockets."""
    done = scheduler.reap()
    batch = scheduler.schedule()
    first = None
    if batch.prefill:
        wanted = [len(batch.chunk) - 1] if batch.completes_prompt else []
        logits = engine.prefill(batch.prefill.row, batch.chunk, batch.prefill.cached, wanted)
        first = sample(logits, [batch.prefill.sampler])[0] if wanted else None
    tokens = []
    if batch.decode:
        assert [s.row for s in batch.decode] == list(range(len(batch.decode)))
        logits = engine.decode([s.ids[-1] for s in batch.decode], [s.cached for s in batch.decode])
        tokens = sample(logits, [s.sampler for s in batch.decode])
    advanced = scheduler.postprocess(batch, first, tokens, prefill_ms=len(batch.chunk))  # one token a millisecond
    return done + [s for s in advanced if s.finished]


def correct(engine: FakeEngine, prompt: list[int], count: int) -> list[int]:
    ids = list(prompt)
    for _ in range(count):
        ids.append(engine.expected(ids))
    return ids[len(prompt) :]


events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(1, 96), min_size=1, max_size=40), st.integers(1, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.just(("step",)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(events, st.integers(1, 4))
def test_every_sequence_has_its_own_row(plan: list[tuple[object, ...]], rows: int) -> None:
    engine = FakeEngine(rows)
    scheduler = Scheduler(rows, engine.move)
    prompts: dict[int, list[int]] = {}
    finished: dict[int, Sequence] = {}
    for event in plan + [("step",)] * 2000:
        if event[0] == "add":
            request_id = len(prompts)
            prompts[request_id] = event[1]  # type: ignore[assignment]
            scheduler.add(sequence(request_id, prompts[request_id], event[2]))  # type: ignore[arg-type]
        elif event[0] == "cancel":
            found = scheduler.find(event[1])  # type: ignore[arg-type]
            if found:
                found.end("cancelled")
        else:
            for done in step(scheduler, engine):
                assert done.id not in finished
                finished[done.id] = done
        assert scheduler.running <= rows
        if event == ("step",) and len(finished) == len(prompts):
            break
    assert set(finished) == set(prompts)
    for request_id, done in finished.items():
        assert done.ids[done.prompt_tokens :] == correct(engine, prompts[request_id], done.new_tokens)
        assert done.finished in ("length", "cancelled")
    assert scheduler.running == scheduler.waiting == 0


def test_first_come_first_served() -> None:
    engine, order = FakeEngine(1), []
    scheduler = Scheduler(1, engine.move)
    for request_id in range(3):
        scheduler.add(sequence(request_id, [1, 2], 3))
    for _ in range(20):
        order += [s.id for s in step(scheduler, engine)]
    assert order == [0, 1, 2]


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    engine = FakeEngine(2, context=1024)
    scheduler = Scheduler(2, engine.move)
    scheduler.add(sequence(0, [1], 500))
    step(scheduler, engine)
    scheduler._tokens_per_ms = 1.0
    scheduler.add(sequence(1, [3] * 100, 5))
    engine.calls.clear()
    for _ in range(4):
        step(scheduler, engine)
    assert engine.calls == ["prefill 1 0+40", "decode 1", "prefill 1 40+40", "decode 1", "prefill 1 80+20", "decode 1", "decode 2"]


def test_the_chunk_follows_the_measured_speed() -> None:
    engine = FakeEngine(1, context=4096)
    scheduler = Scheduler(1, engine.move)
    scheduler.add(sequence(0, [1] * 4000, 1))
    sizes = []
    for _ in range(12):
        batch = scheduler.schedule()
        sizes.append(len(batch.chunk))
        engine.prefill(0, batch.chunk, batch.prefill.cached if batch.prefill else 0, [])
        scheduler.postprocess(batch, None, [], len(batch.chunk) / 0.1)  # a slow engine: 0.1 tokens a millisecond
    assert sizes[-1] == MIN_CHUNK


def test_deadlines_end_waiting_and_running_sequences() -> None:
    engine = FakeEngine(1)
    scheduler = Scheduler(1, engine.move)
    running, waiting = sequence(0, [1], 60, deadline_ms=30), sequence(1, [1], 60, deadline_ms=30)
    scheduler.add(running)
    scheduler.add(waiting)
    step(scheduler, engine)
    running._expires = waiting._expires = time.monotonic() - 1
    assert {s.id for s in scheduler.reap()} == {0, 1}
    assert (running.finished, waiting.finished) == ("deadline", "deadline")
    assert (running.started, waiting.started) == (True, False)
