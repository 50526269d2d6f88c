"""Rows and fairness, with a fake engine that notices a mixed-up row."""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from protocol.messages import Alternative, Generate, Score
from scripts.reliability.fakes import FakeEngine, TogetherEngine
from server.engines.base import KV, Memory
from server.link import Work
from server.worker.beams import BeamSearch
from server.worker.increments import ByteDecoder
from server.worker.prefix_cache import PrefixCache
from server.worker.runner import Runner
from server.worker.scheduler import KEEP_S, MIN_CHUNK, Scheduler
from server.worker.scoring import Scores, texts_of
from server.worker.sequence import Generation, Sequence
from server.worker.text import Spans, Vocabulary
from server.worker.text_scores import Piece, Told


def scheduler_of(engine: FakeEngine, cache_bytes: int = 0) -> Scheduler:
    return Scheduler(engine, PrefixCache(cache_bytes, 8))


def sequence(request_id: int, prompt: list[int], new: int, group: int = 0, **settings: object) -> Sequence:
    return Sequence(generation_of(request_id, prompt, new, group, **settings))


def scores_in(scheduler: Scheduler, tokens: int, stride: int) -> Scores:
    """Put a text to score in line, in a context of 64 tokens."""
    request = Score(ids=[1] * tokens, stride=stride, bos="never")
    spans = Spans("x" * tokens, [1] * tokens, list(range(tokens + 1)))
    texts = texts_of(request, [Piece([], spans)], Told(0, told), 64)
    scores = Scores(Work(id=0, group=1, request=request), request, texts, 0.0, judges=False)
    for prompt in scores.prompts():
        scheduler.add(prompt)
    return scores


def generation_of(request_id: int, prompt: list[int], new: int, group: int = 0, **settings: Any) -> Generation:
    request = Generate(prompt="", max_new_tokens=new, **({"strategy": "greedy"} | settings))
    return Generation(
        id=request_id,
        group=group,
        request=request,
        prompt=prompt,
        dropped=0,
        seed=0,
        bad_words=[],
        stops=frozenset(),
        vocabulary=Vocabulary(ByteDecoder([b"x"] * 97), (0,)),
        received=time.monotonic(),
    )


def step(scheduler: Scheduler, engine: FakeEngine) -> list[Sequence]:
    """Take a step as the worker's loop does, without its sockets; return the sequences that finished."""
    done = scheduler.reap()
    batch = scheduler.schedule()
    assert [row.row for row in batch.decode] == list(range(len(batch.decode)))
    outcome = Runner(engine).run(batch)
    outcome.prefill_ms = batch.prompt_tokens  # one token a millisecond
    advanced = scheduler.postprocess(batch, outcome)
    scheduler.release(advanced)
    finished = [*done, *(task for task in advanced if task.finished)]
    assert all(isinstance(task, Sequence) and not task.fault for task in finished)
    return [task for task in finished if isinstance(task, Sequence)]


def take(scheduler: Scheduler, engine: FakeEngine, steps: int = 1) -> None:
    """Take steps with tasks of any kind, one token a millisecond."""
    for _ in range(steps):
        scheduler.reap()
        batch = scheduler.schedule()
        outcome = Runner(engine).run(batch)
        outcome.prefill_ms = batch.prompt_tokens
        scheduler.release(scheduler.postprocess(batch, outcome))


# Few different tokens, so that prompts share beginnings.
prompts = st.lists(st.integers(1, 96), min_size=1, max_size=40) | st.lists(st.integers(1, 2), min_size=8, max_size=40)
events = st.lists(
    st.one_of(
        st.tuples(st.just("add"), prompts, st.integers(1, 20)),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.just(("step",)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(events, st.integers(1, 4), st.sampled_from([0, 600, 10_000]), st.sampled_from([FakeEngine, TogetherEngine]))
def test_every_sequence_has_its_own_row(
    plan: list[tuple[object, ...]], rows: int, cache_bytes: int, kind: type[FakeEngine]
) -> None:
    """Under any arrivals, cancellations and ends, with and without reuse of prefixes."""
    engine = kind(rows)
    scheduler = scheduler_of(engine, cache_bytes)
    asked: dict[int, list[int]] = {}
    finished: dict[int, Sequence] = {}
    for event in plan + [("step",)] * 2000:
        if event[0] == "add":
            request_id = len(asked)
            asked[request_id] = event[1]  # type: ignore[assignment]
            scheduler.add(sequence(request_id, asked[request_id], event[2], group=request_id % 3))  # type: ignore[arg-type]
        elif event[0] == "cancel":
            for found in scheduler.find(event[1]):  # type: ignore[arg-type]
                found.end("cancelled")
        else:
            for done in step(scheduler, engine):
                assert done.id not in finished
                finished[done.id] = done
        assert scheduler.running <= rows
        if event == ("step",) and len(finished) == len(asked):
            break
    assert set(finished) == set(asked)
    for request_id, done in finished.items():
        assert done.ids[done.prompt_tokens :] == engine.greedy(asked[request_id], done.new_tokens)
        assert done.finished in ("length", "cancelled")
    assert scheduler.running == scheduler.waiting == 0


def test_first_come_first_served() -> None:
    engine, order = FakeEngine(1), []
    scheduler = scheduler_of(engine)
    for request_id in range(3):
        scheduler.add(sequence(request_id, [1, 2], 3))
    for _ in range(20):
        order += [s.id for s in step(scheduler, engine)]
    assert order == [0, 1, 2]


def test_a_long_prompt_is_prefilled_in_chunks_while_others_decode() -> None:
    engine = FakeEngine(2, context=1024)
    scheduler = scheduler_of(engine)
    scheduler.add(sequence(0, [1], 500))
    step(scheduler, engine)
    scheduler.tokens_per_ms = 1.0
    scheduler.add(sequence(1, [3] * 100, 5))
    engine.calls.clear()
    for _ in range(4):
        step(scheduler, engine)
    assert engine.calls == [
        "decode 1",
        "prefill 1 0+40",
        "decode 1",
        "prefill 1 40+40",
        "decode 1",
        "prefill 1 80+20",
        "decode 2",
    ]


def test_the_chunk_follows_the_measured_speed() -> None:
    engine = FakeEngine(1, context=4096)
    scheduler = scheduler_of(engine)
    scheduler.add(sequence(0, [1] * 4000, 1))
    sizes = []
    for _ in range(12):
        batch = scheduler.schedule()
        sizes.append(batch.prompt_tokens)
        outcome = Runner(engine).run(batch)
        outcome.prefill_ms = batch.prompt_tokens / 0.1  # a slow engine: 0.1 tokens a millisecond
        scheduler.postprocess(batch, outcome)
    assert sizes[-1] == MIN_CHUNK


def test_deadlines_end_waiting_and_running_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    engine = FakeEngine(1)
    scheduler = scheduler_of(engine)
    running, waiting = sequence(0, [1], 60, deadline_ms=30), sequence(1, [1], 60, deadline_ms=30)
    scheduler.add(running)
    scheduler.add(waiting)
    step(scheduler, engine)
    now += 1
    assert {s.id for s in scheduler.reap()} == {0, 1}
    assert (running.finished, waiting.finished) == ("deadline", "deadline")
    assert (running.started, waiting.started) == (True, False)


def test_nothing_is_kept_of_a_peer_that_gave_up_waiting() -> None:
    """Without keys each connection is a group of its own: what is kept of each would grow for ever."""
    engine = FakeEngine(1)
    scheduler = scheduler_of(engine)
    scheduler.add(sequence(0, [1], 50, group=1))
    step(scheduler, engine)
    for request_id in range(1, 5):
        scheduler.add(sequence(request_id, [1], 5, group=1 + request_id))
        step(scheduler, engine)
        scheduler.find(request_id)[0].end("cancelled")
        step(scheduler, engine)
    assert scheduler.waiting == 0 and not scheduler._heads


def test_groups_take_turns() -> None:
    engine, order = FakeEngine(1), []
    scheduler = scheduler_of(engine)
    for request_id, group in enumerate([1, 1, 1, 2, 3, 2]):
        scheduler.add(sequence(request_id, [1, 2], 2, group=group))
    assert [s.id for s in scheduler.in_line()] == [0, 3, 4, 1, 5, 2]
    for _ in range(30):
        order += [s.id for s in step(scheduler, engine)]
    assert order == [0, 3, 4, 1, 5, 2]


def test_a_continued_page_computes_its_new_tokens_only() -> None:
    engine = FakeEngine(2)
    scheduler = scheduler_of(engine, 10_000)
    page = list(range(1, 31))
    first = sequence(0, page, 5)
    scheduler.add(first)
    while not step(scheduler, engine):
        pass
    again = sequence(1, page, 5)
    longer = sequence(2, [*first.ids, 7, 7], 3)
    other = sequence(3, [90, *page], 3)
    for later in (again, longer, other):
        engine.calls.clear()
        scheduler.add(later)
        while not step(scheduler, engine):
            pass
        assert later.ids[later.prompt_tokens :] == engine.greedy(later.ids[: later.prompt_tokens], later.new_tokens)
    assert (again.reused, longer.reused, other.reused) == (29, 34, 0)
    assert engine.calls[0] == "prefill 0 0+31"


def test_deterministic_runs_alone_and_reuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those after it need not wait, as long as it has not waited for long."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    engine = FakeEngine(4)
    scheduler = scheduler_of(engine, 10_000)
    page = list(range(1, 31))
    scheduler.add(sequence(0, page, 8))
    scheduler.add(sequence(1, page, 8, deterministic=True))
    scheduler.add(sequence(2, page, 8))
    order = []
    for _ in range(60):
        order += step(scheduler, engine)
    assert [s.id for s in order] == [0, 2, 1]
    assert [s.reused for s in order] == [0, 0, 0]
    assert engine.calls.count("decode 1") >= 7 and engine.calls[-7:] == ["decode 1"] * 7


@pytest.mark.parametrize("settings", [{"deterministic": True}, {"strategy": "beam", "num_beams": 4}])
def test_rows_are_kept_free_for_what_has_waited(monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    engine = FakeEngine(4, context=2000)
    scheduler = scheduler_of(engine)
    scheduler.add(sequence(0, [1], 100, group=1))
    take(scheduler, engine)
    generation = generation_of(1, [2], 3, group=2, **settings)
    wide = BeamSearch(generation) if "num_beams" in settings else Sequence(generation)
    scheduler.add(wide)
    request_id = 2
    begun: list[float] = []
    while wide.row < 0:
        scheduler.add(sequence(request_id, [3], 2, group=3 + request_id % 3))
        request_id += 1
        take(scheduler, engine)
        begun += [now] if scheduler.running > 1 and wide.row < 0 else []
        now += 0.05
    assert 1000 + KEEP_S - 0.1 < begun[-1] < 1000 + KEEP_S + 0.2, "until then everybody else gets a row, then nobody"
    assert not scheduler.find(0), "which ended meanwhile"
    take(scheduler, engine, 300)
    assert not scheduler.waiting and not scheduler.running


def test_each_group_prefills_a_chunk_in_turn() -> None:
    engine = FakeEngine(8, context=1024)
    scheduler = scheduler_of(engine)
    scheduler.tokens_per_ms = 1.0
    scheduler.add(sequence(0, [1] * 600, 5, group=1))
    scheduler.add(sequence(1, [1] * 600, 5, group=1))
    scheduler.add(sequence(2, [2] * 600, 5, group=2))
    take(scheduler, engine, 2)
    scheduler.add(sequence(3, [3] * 5, 1, group=3))
    take(scheduler, engine, 4)
    prefilled = [call.removeprefix("prefill ") for call in engine.calls if call.startswith("prefill")]
    assert prefilled == ["0 0+40", "1 0+40", "0 0+5", "7 40+40", "1 40+40", "7 80+40"]
    for request_id in range(4, 9):
        scheduler.add(sequence(request_id, [3] * 5, 1, group=3))
        take(scheduler, engine, 3)
    moves = [call for call in engine.calls if call.startswith("move")]
    assert moves == ["move 0->7"], "what is half done makes room once"


def test_newcomers_go_first_and_stop_nobody() -> None:
    """However many short prompts come, a long one gets a chunk within twice the turns that it would wait otherwise."""
    engine = FakeEngine(8, context=1024)
    scheduler = scheduler_of(engine)
    scheduler.tokens_per_ms = 1.0
    scheduler.add(sequence(0, [1] * 400, 1, group=1))
    take(scheduler, engine)
    for request_id in range(1, 40):
        scheduler.add(sequence(request_id, [2] * 3, 1, group=2 + request_id % 3))
        take(scheduler, engine)
    prefilled = [call.split()[2] for call in engine.calls if call.startswith("prefill")]
    assert prefilled[:3] == ["0+160", "0+3", "160+40"]
    long = [i for i, call in enumerate(prefilled) if call != "0+3"]
    assert all(later - earlier <= 2 * 4 for earlier, later in itertools.pairwise(long))
    assert not scheduler.find(0), "it is done"


def told(token: int, logprob: float) -> Alternative:
    return Alternative(id=token, text="", logprob=logprob)


def test_on_one_row_texts_that_are_scored_take_turns_by_window() -> None:
    engine = FakeEngine(1, context=64)
    scheduler = scheduler_of(engine)
    scores = scores_in(scheduler, 1000, stride=32)
    take(scheduler, engine)
    scheduler.add(sequence(1, [2] * 3, 2, group=2))
    take(scheduler, engine, 4)
    assert engine.calls == ["prefill 0 0+63", "prefill 0 0+63", "prefill 0 0+3", "decode 1", "prefill 0 0+63"]
    take(scheduler, engine, 40)
    assert scores.complete and not scheduler.waiting


def test_the_prefix_cache_finds_what_its_owner_has_kept_alone() -> None:
    engine = FakeEngine(1)
    cache = PrefixCache(8 * 64, 8)
    ids = list(range(10))
    cache.put(ids, partial(engine.export, 0), owner=1)
    cache.put(ids[:9], partial(engine.export, 0), owner=256)
    found = {owner: kv.positions for owner in (0, 1, 2, 256) if (kv := cache.get(ids, owner))}
    assert found == {1: 10, 256: 9} and len(cache) == 2, "and neither has taken the other's place"


def test_the_prefix_cache_keeps_within_its_bytes() -> None:
    engine = FakeEngine(1, context=64)
    cache = PrefixCache(8 * 40, 8)
    engine.prefill(0, list(range(1, 21)), 0, [])
    for start in (1, 2, 3):
        cache.put(list(range(start, start + 20)), partial(engine.export, 0))
    assert (len(cache), cache.positions) == (2, 40)
    assert cache.get(list(range(1, 30))) is None, "the oldest has left"
    found = cache.get([*range(2, 12), 99, 98])
    assert found and found.positions == 10
    cache.put(list(range(2, 18)), lambda *_: (_ for _ in ()).throw(AssertionError("it is known already")))
    cache.put(list(range(1, 60)), lambda *_: (_ for _ in ()).throw(AssertionError("it does not fit")))
    assert len(cache) == 2, "one that is larger than the cache is not kept"
    assert cache.get([5, 6, 7]) is None


@pytest.mark.skipif(sys.platform != "linux", reason="memory is resized on Linux alone")
def test_the_prefix_cache_fills_memory_of_what_has_left() -> None:
    cache = PrefixCache(8 * 40, 8)
    spares: list[Memory | None] = []

    def export(positions: int, spare: Memory | None) -> KV:
        spares.append(spare)
        kv = KV.empty((1, 1, positions, 1), np.float32, spare)
        assert spare is None or kv.memory == spare
        kv.keys[:] = kv.values[:] = positions
        return kv

    for start, tokens in ((1, 20), (2, 20), (3, 16), (4, 30)):
        cache.put(list(range(start, start + tokens)), export)
    assert [spare is None for spare in spares] == [True, True, False, False]
    found = cache.get(list(range(4, 40)))
    assert found and found.positions == 30 and found.keys.min() == found.keys.max() == 30


def test_memory_that_somebody_looks_at_is_not_filled() -> None:
    old = KV.empty((1, 1, 20, 1), np.float32)
    old.keys[:] = 1
    new = KV.empty((1, 1, 20, 1), np.float32, old.memory)
    new.keys[:] = 2
    assert old.keys.max() == 1 and new.memory is not None


def together(rows: int, **settings: int) -> tuple[TogetherEngine, Scheduler]:
    """Return an engine that runs rows together, and a scheduler that takes it to prefill one token a millisecond."""
    engine = TogetherEngine(rows, **settings)
    scheduler = scheduler_of(engine)
    scheduler.tokens_per_ms = 1.0
    return engine, scheduler


@pytest.mark.parametrize("groups", [3, 1], ids=["of three groups", "of one group"])
def test_short_prompts_prefill_in_one_step_beside_what_decodes(groups: int) -> None:
    engine, scheduler = together(8)
    scheduler.add(sequence(0, [5], 30))
    take(scheduler, engine)
    for request_id in range(1, 6):
        scheduler.add(sequence(request_id, [request_id] * 10, 30, group=1 + request_id % groups))
    engine.calls.clear()
    take(scheduler, engine, 2)
    assert engine.calls == [
        "run 0:1+1 1:0+10 2:0+10 3:0+10 4:0+10",  # 40 ms are 40 tokens
        "run 0:2+1 1:10+1 2:10+1 3:10+1 4:10+1 5:0+10",
    ]
    take(scheduler, engine, 40)
    assert not scheduler.running and not scheduler.waiting


def test_a_long_prompt_and_newcomers_share_a_step_in_turns() -> None:
    engine, scheduler = together(8, context=1024)
    scheduler.add(sequence(0, [1] * 300, 2, group=1))
    take(scheduler, engine)
    for request_id in range(1, 4):
        scheduler.add(sequence(request_id, [2] * 12, 9, group=1 + request_id))
    engine.calls.clear()
    take(scheduler, engine, 3)
    steps = [call for call in engine.calls if not call.startswith("move")]
    assert steps[0] == "run 0:0+12 1:0+12 2:0+12", "the 4 tokens that are left would cut the long one too short"
    assert [call.split()[-1] for call in steps[1:]] == ["7:160+40", "7:200+40"]


def test_the_other_continuations_of_a_request_wait_for_its_prompt() -> None:
    engine, scheduler = together(8)
    scheduler = Scheduler(engine, PrefixCache(10_000, 8))
    scheduler.tokens_per_ms = 1.0
    generation = generation_of(0, [3] * 12, 4, n=3)
    for index in range(3):
        scheduler.add(Sequence(generation, index))
    take(scheduler, engine, 3)
    assert [call for call in engine.calls if call.startswith("restore")] == ["restore 1 11", "restore 2 11"]


def test_a_prompt_that_fails_leaves_no_gap_between_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, scheduler = together(4)
    sequences = [sequence(request_id, [request_id + 1] * 5, 6, group=request_id) for request_id in range(4)]

    def fault(*_: object) -> None:
        raise FloatingPointError("no numbers")

    monkeypatch.setattr(sequences[1], "prefilled", fault)
    for one in sequences:
        scheduler.add(one)
    take(scheduler, engine)
    assert sequences[1].fault and [(one.row, one.cached) for one in sequences if not one.fault] == [
        (0, 5),
        (1, 5),
        (2, 5),
    ]
    take(scheduler, engine, 8)
    for i in (0, 2, 3):
        assert sequences[i].ids[5:] == engine.greedy([i + 1] * 5, 6)


def test_a_text_that_is_scored_keeps_its_place_beside_prompts_that_end() -> None:
    engine, scheduler = together(3, context=64)
    scheduler.tokens_per_ms = 3.0
    scores = scores_in(scheduler, 200, stride=60)
    written = [sequence(request_id, [request_id] * 5, 6, group=1 + request_id) for request_id in (1, 2)]
    for one in written:
        scheduler.add(one)
    take(scheduler, engine, 12)
    assert engine.calls[0] == "run 2:0+63 0:0+5 1:0+5"
    assert scores.complete and not scheduler.waiting
    for one in written:
        assert one.ids[5:] == engine.greedy([one.id] * 5, 6)
