"""Loop of the worker with a fake engine and a connection that is a list."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from protocol import messages as m
from scripts.reliability.fakes import FakeEngine, ListConnection
from server.catalogue.architecture import Architecture, read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tokenizer import read_tokenizer
from server.engines.base import Engine, Hidden, Logits
from server.launch.spec import Spec
from server.link import Beat, FromWorker, Work
from server.worker.loop import Worker
from server.worker.scheduler import Scheduler
from server.worker.sequence import Sequence
from server.worker.text import Text

ARCH = read_architecture(DEMO_FOLDER)
SPEC = Spec(
    endpoint="",
    server_key="",
    identity="",
    model="demo",
    folder=str(DEMO_FOLDER),
    hub_cache="",
    models_dir="",
    engine="onnx",
    precision="fp32",
    threads=1,
    rows=1,
    room=0,
    cache_dir="",
    cache_bytes=0,
)


class Loop:
    """Worker whose loop is turned by hand."""

    def __init__(
        self,
        rows: int = 1,
        engine: Engine | None = None,
        name: str = "onnx",
        folder: Path = DEMO_FOLDER,
        arch: Architecture = ARCH,
    ) -> None:
        self.link = ListConnection()
        self.engine = FakeEngine(rows, arch.context, arch.vocabulary)
        text = Text(read_tokenizer(folder), arch)
        self.worker = Worker(replace(SPEC, engine=name), self.link, engine or self.engine, text, "digest", arch)

    @property
    def scheduler(self) -> Scheduler:
        return self.worker.scheduler

    def ask(self, request_id: int, group: int = 0, **fields: object) -> None:
        self.worker.take(Work(id=request_id, group=group, request=m.Generate(**fields)))  # type: ignore[arg-type]

    def cancel(self, request_id: int) -> None:
        self.worker.take(m.Cancel(target=request_id))

    def turn(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.worker.step()


def test_cancel_in_prefill_takes_effect_within_one_chunk() -> None:
    loop = Loop()
    loop.scheduler.tokens_per_ms = 0.2
    loop.ask(1, prompt_ids=[5] * 900, max_new_tokens=5, stream=True)
    loop.turn()
    assert loop.engine.calls == ["prefill 0 0+32"]
    loop.scheduler.tokens_per_ms = 0.2
    loop.cancel(1)
    loop.turn()
    assert loop.engine.calls == ["prefill 0 0+32"]
    (result,) = loop.link.sent
    assert isinstance(result, m.Generated) and result.finish_reason == "cancelled" and result.ids == []
    assert loop.scheduler.running == 0


def test_no_logits_are_asked_for_before_the_prompt_is_complete() -> None:
    loop = Loop()
    loop.scheduler.tokens_per_ms = 0.2
    loop.ask(1, prompt_ids=[5] * 40, max_new_tokens=2, strategy="greedy")
    loop.turn(6)
    assert loop.engine.calls[0] == "prefill 0 0+32" and loop.engine.calls[-1] == "decode 1"
    (result,) = loop.link.sent
    assert isinstance(result, m.Generated)
    first = loop.engine.expected([5] * 40)
    assert result.ids == [first, loop.engine.expected([*[5] * 40, first])]


def test_the_first_token_is_sent_at_once_and_later_ones_together() -> None:
    loop = Loop()
    loop.ask(1, prompt_ids=[5], max_new_tokens=200, strategy="greedy", stream=True)
    loop.turn(250)
    pieces = [p for p in loop.link.sent if isinstance(p, m.Tokens)]
    assert len(pieces[0].ids) == 1
    assert len(pieces) < 100, "a fast engine's tokens are sent in pieces of 20 ms"
    assert isinstance(loop.link.sent[-1], m.Generated)
    assert [i for p in pieces for i in p.ids] == loop.link.sent[-1].ids


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time, in the test's hands."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def crowd(loop: Loop, clock: list[float], new: int = 200) -> None:
    """Let eight streams write, until each has sent its first piece."""
    for request_id in range(1, 9):
        loop.ask(
            request_id, group=request_id, prompt_ids=[request_id], max_new_tokens=new, strategy="greedy", stream=True
        )
    for _ in range(8):
        clock[0] += 0.004
        loop.turn()
    assert {p.id for p in loop.link.sent if isinstance(p, m.Tokens)} == set(range(1, 9)), "each at once"


def test_streams_have_their_pieces_in_one_message_every_20_ms(clock: list[float]) -> None:
    loop = Loop(rows=9)
    crowd(loop, clock)
    loop.link.messages = 0
    loop.link.sent.clear()
    for _ in range(50):
        clock[0] += 0.004
        loop.turn()
    assert loop.link.messages == 10
    assert len(loop.link.sent) == 80 and all(len(p.ids) == 5 for p in loop.link.sent[8:] if isinstance(p, m.Tokens))
    clock[0] += 0.020
    loop.turn()
    loop.link.messages = 0
    loop.ask(9, group=9, prompt_ids=[9], max_new_tokens=200, strategy="greedy", stream=True)
    clock[0] += 0.004
    loop.turn()
    newest = loop.link.sent[-1]
    assert loop.link.messages == 1 and isinstance(newest, m.Tokens) and newest.id == 9, "and it alone"


def test_a_stream_has_its_pieces_as_often_as_it_asked(clock: list[float]) -> None:
    loop = Loop(rows=4)
    for request_id, interval in enumerate((0, 20, 60, 60), 1):
        asked: dict[str, Any] = {"max_new_tokens": 200, "strategy": "greedy", "stream_interval_ms": interval}
        loop.ask(request_id, group=request_id, prompt_ids=[request_id], stream=True, **asked)
    for _ in range(4):
        clock[0] += 0.004
        loop.turn()
    assert {p.id for p in loop.link.sent} == {1, 2, 3, 4}, "each has its first token at once"
    clock[0] += 0.060
    loop.turn()
    loop.link.sent.clear()
    loop.link.messages = 0
    for _ in range(60):
        clock[0] += 0.004
        loop.turn()
    counts = [sum(p.id == request_id for p in loop.link.sent) for request_id in (1, 2, 3, 4)]
    assert counts == [60, 12, 4, 4]
    assert loop.link.messages == 60, "those that are due in a step are sent together"
    assert all(len(p.ids) == 15 for p in loop.link.sent if isinstance(p, m.Tokens) and p.id in {3, 4})


class Changing(FakeEngine):
    """Takes one step with both of its threads, and all others with one."""

    threads = threads_used = 2
    steps = steps_threads = 0

    def decode(self, ids: Many[int], past: Many[int], hidden: Hidden | None = None) -> Logits:
        self.steps, self.steps_threads = self.steps + 1, self.steps_threads + (1 if self.steps else 2)
        return super().decode(ids, past, hidden)


def test_results_say_how_many_threads_were_used() -> None:
    loop = Loop(engine=Changing(1, ARCH.context, ARCH.vocabulary))
    for request_id in (1, 2):
        loop.ask(request_id, prompt="Once", max_new_tokens=5, ignore_eos=True, stream=False)
        loop.turn(9)
    results = [reply for reply in loop.link.sent if isinstance(reply, m.Generated)]
    assert [(r.threads, r.threads_used) for r in results] == [(2, 1.25), (2, 1.0)]
    fixed = Loop()
    fixed.ask(3, prompt="Once", max_new_tokens=5, stream=False)
    fixed.turn(9)
    result = fixed.link.sent[-1]
    assert isinstance(result, m.Generated) and result.threads_used == result.threads == 1


def test_ends_and_cancellations_go_at_once_and_after_all_that_was_written(clock: list[float]) -> None:
    loop = Loop(rows=8)
    crowd(loop, clock, new=40)
    loop.turn(2)
    loop.cancel(3)
    loop.turn()
    assert [reply.id for reply in loop.link.sent if isinstance(reply, m.Generated)] == [3]
    loop.turn(40)  # in no time at all
    for request_id in range(1, 9):
        *pieces, last = (reply for reply in loop.link.sent if reply.id == request_id)
        assert isinstance(last, m.Generated)
        assert [i for p in pieces if isinstance(p, m.Tokens) for i in p.ids] == last.ids
        assert "".join(p.text for p in pieces if isinstance(p, m.Tokens)) == last.text
        assert last.finish_reason == ("cancelled" if request_id == 3 else "length")


def test_a_step_of_eight_streams_calls_little(clock: list[float]) -> None:
    """Count of Python's functions, since what each costs beside a model is too little to be timed here."""
    loop = Loop(rows=8)
    crowd(loop, clock)
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        ours = "server/worker" in (file := frame.f_code.co_filename) and not file.endswith("sampling.py")
        calls += event == "call" and ours

    for elapsed, most in ((0.001, 80), (0.020, 150)):
        calls, clock[0] = 0, clock[0] + elapsed
        sys.setprofile(count)
        loop.turn()
        sys.setprofile(None)
        assert 0 < calls <= most


def test_beats_count_as_the_ledgers_do() -> None:
    """Searches, several continuations, guesses beyond the end, and what was cancelled."""
    loop = Loop(rows=8)
    loop.ask(1, prompt_ids=[5], max_new_tokens=9, strategy="beam", num_beams=3, n=2)
    loop.ask(2, prompt_ids=[6, 7], max_new_tokens=6, strategy="contrastive", num_candidates=2)
    loop.ask(3, prompt_ids=[8] * 4, max_new_tokens=5, n=3)
    loop.turn(30)
    loop.ask(4, prompt_ids=[9, 9], max_new_tokens=500)
    loop.turn(10)
    loop.worker._beat_at = 0
    loop.worker.beat()
    loop.cancel(4)
    loop.turn(2)
    loop.worker._beat_at = 0
    loop.worker.beat()
    running, last = (x for x in loop.link.sent if isinstance(x, Beat))
    results = [x for x in loop.link.sent if isinstance(x, m.Generated)]
    ledgers = [x for r in results for x in (r.ledger, *(other.ledger for other in r.others))]
    assert len(ledgers) == 7 and results[-1].finish_reason == "cancelled"
    assert last.new_tokens == running.new_tokens == sum(x.new_tokens for x in ledgers)
    assert last.prompt_tokens == sum(x.prompt_tokens for x in ledgers) > running.prompt_tokens


def test_a_refused_prompt_does_not_stop_the_loop() -> None:
    loop = Loop()
    loop.ask(1, prompt_ids=[5] * 2000)
    loop.ask(2, prompt_ids=[99_999])
    loop.ask(3, prompt_ids=[5], max_new_tokens=1)
    loop.turn(2)
    assert [(r.id, getattr(r, "code", "result")) for r in loop.link.sent] == [
        (1, "too_long"),
        (2, "bad_request"),
        (3, "result"),
    ]


@pytest.mark.parametrize("rows", [1, 3])
def test_sequences_share_the_rows(rows: int) -> None:
    loop = Loop(rows)
    for request_id in range(1, 8):
        loop.ask(request_id, prompt_ids=[request_id], max_new_tokens=4 + request_id, strategy="greedy")
    loop.turn(200)
    results = {r.id: r for r in loop.link.sent if isinstance(r, m.Generated)}
    assert set(results) == set(range(1, 8))
    for key, result in results.items():
        assert key is not None and result.ids == loop.engine.greedy([key], len(result.ids))
    assert (max(r.ledger.mean_batch for r in results.values()) > 1) == (rows > 1)


def test_n_continuations_share_one_prefill() -> None:
    loop = Loop(rows=2)
    loop.ask(1, prompt_ids=list(range(1, 41)), max_new_tokens=6, n=3, seed=7, temperature=50.0, top_k=0, stream=True)
    loop.turn(100)
    result = loop.link.sent[-1]
    assert isinstance(result, m.Generated) and len(result.others) == 2
    texts = [result.ids, *(o.ids for o in result.others)]
    assert len({tuple(t) for t in texts}) == 3 and [len(t) for t in texts] == [6, 6, 6]
    assert [o.seed for o in result.others] == [8, 9] and result.settings["seed"] == 7
    prefills = [c.split()[2] for c in loop.engine.calls if c.startswith("prefill")]
    assert prefills == ["0+40", "39+1", "39+1"]
    assert [o.ledger.reused_tokens for o in result.others] == [39, 39]
    for index in range(3):
        streamed = [i for p in loop.link.sent if isinstance(p, m.Tokens) and p.index == index for i in p.ids]
        assert streamed == texts[index]
    # The same as asked for one by one.
    for seed, ids in zip((7, 8, 9), texts, strict=True):
        loop.ask(2, prompt_ids=list(range(1, 41)), max_new_tokens=6, seed=seed, temperature=50.0, top_k=0)
        loop.turn(20)
        alone = loop.link.sent[-1]
        assert isinstance(alone, m.Generated) and alone.ids == ids


def test_a_waiting_stream_is_sent_its_place() -> None:
    loop = Loop()
    for request_id in (1, 2, 3):
        loop.ask(request_id, group=request_id, prompt_ids=[5], max_new_tokens=3, stream=True)
    loop.turn()
    loop.worker.send_places()
    loop.worker.send_places()
    places = [(p.id, p.done, p.total) for p in loop.link.sent if isinstance(p, m.Progress)]
    assert places == [(2, 1, 2), (3, 2, 2)]
    loop.turn(4)
    loop.worker.send_places()
    assert [(p.id, p.done) for p in loop.link.sent if isinstance(p, m.Progress)][2:] == [(3, 1)]


def test_a_fault_in_one_sampler_costs_its_own_request() -> None:
    loop = Loop(rows=3)
    for request_id in (1, 2, 3):
        loop.ask(request_id, prompt_ids=[request_id], max_new_tokens=6, strategy="greedy")
    loop.turn(4)
    (broken,) = loop.scheduler.find(2)
    assert isinstance(broken, Sequence)

    def fault(*_: object) -> Logits:
        raise FloatingPointError("NaN")

    broken.sampler.choice = fault  # type: ignore[method-assign, assignment]  # whatever it is asked
    broken.sampler.pick = fault  # type: ignore[method-assign, assignment]  # whatever it is asked
    broken.sampler.plain = False
    loop.turn(20)
    replies = {r.id: r for r in loop.link.sent}
    failure = replies[2]
    assert isinstance(failure, m.Failure) and failure.code == "internal" and "FloatingPointError" in failure.message
    for request_id in (1, 3):
        result = replies[request_id]
        assert isinstance(result, m.Generated)
        assert result.ids == loop.engine.greedy([request_id], 6)
    assert loop.scheduler.running == loop.scheduler.waiting == 0


def test_cancelling_n_continuations_gives_one_result_after_all_their_pieces() -> None:
    loop = Loop(rows=2)
    loop.ask(1, prompt_ids=[3] * 9, max_new_tokens=500, n=4, stream=True, strategy="greedy")
    loop.turn(6)
    loop.cancel(1)
    loop.turn(2)
    *pieces, result = loop.link.sent
    assert isinstance(result, m.Generated) and result.finish_reason == "cancelled"
    for index, ids in enumerate([result.ids, *(o.ids for o in result.others)]):
        assert [i for p in pieces if isinstance(p, m.Tokens) and p.index == index for i in p.ids] == ids
    loop.turn(3)
    assert loop.link.sent[-1] is result


def test_sixteen_new_streams_cost_nobody_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(rows=17)
    loop.ask(1, prompt_ids=[7], max_new_tokens=60, strategy="greedy", stream=True, ignore_eos=True)
    loop.turn(3)
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    for request_id in range(2, 18):
        loop.ask(request_id, prompt_ids=[request_id], max_new_tokens=3, strategy="greedy", stream=True)
    loop.turn(40)
    begun = {piece.id for piece in loop.link.sent if isinstance(piece, m.Tokens)}
    assert begun == set(range(1, 18)) and pauses == []


def test_a_stream_alone_pauses_once_after_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop()
    sent_before: list[int] = []
    monkeypatch.setattr(time, "sleep", lambda _: sent_before.append(len(loop.link.sent)))
    loop.ask(1, prompt_ids=[7], max_new_tokens=9, strategy="greedy", stream=True)
    loop.turn(12)
    assert isinstance(loop.link.sent[-1], m.Generated) and sent_before == [1], "the first piece has gone by then"
    loop.ask(2, prompt_ids=[7], max_new_tokens=9, strategy="greedy")
    loop.turn(12)
    assert len(sent_before) == 1, "only a stream's first token has a pause"


@pytest.mark.parametrize("place", ["ledger", "take_piece"])
def test_a_fault_in_a_reply_costs_its_own_request(monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    loop = Loop(rows=2)
    for request_id in (1, 2):
        asked: dict[str, Any] = {"max_new_tokens": 6, "strategy": "greedy", "stream_interval_ms": 0}
        loop.ask(request_id, prompt_ids=[request_id], stream=True, **asked)
    loop.turn(3)
    (broken,) = loop.scheduler.find(2)

    def fault() -> None:
        raise MemoryError

    monkeypatch.setattr(broken, place, fault)
    loop.turn(12)
    last = {reply.id: reply for reply in loop.link.sent}
    assert isinstance(last[1], m.Generated) and last[1].ids == loop.engine.greedy([1], 6)
    failure = last[2]
    assert isinstance(failure, m.Failure) and failure.code == "internal" and "MemoryError" in failure.message
    assert loop.scheduler.running == 0


def test_a_reply_that_memory_is_too_short_to_pack_costs_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(rows=2)
    send = loop.link.send

    def pack(message: FromWorker) -> None:
        if isinstance(message, m.Generated) and message.id == 2:
            raise MemoryError
        send(message)

    monkeypatch.setattr(loop.link, "send", pack)
    for request_id in (1, 2):
        loop.ask(request_id, prompt_ids=[request_id], max_new_tokens=6, strategy="greedy")
    loop.turn(12)
    last = {reply.id: reply for reply in loop.link.sent}
    failure = last[2]
    assert isinstance(last[1], m.Generated)
    assert isinstance(failure, m.Failure) and failure.code == "internal" and "MemoryError" in failure.message


def test_a_known_prompt_that_memory_is_too_short_to_restore_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(rows=2)
    page = list(range(1, 40))
    loop.ask(1, prompt_ids=page, max_new_tokens=6, strategy="greedy")
    loop.turn(8)

    def restore(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(loop.engine, "restore", restore)
    loop.ask(2, prompt_ids=page, max_new_tokens=6, strategy="greedy")
    loop.turn(8)
    first, again = loop.link.sent
    assert isinstance(first, m.Generated) and isinstance(again, m.Generated)
    assert again.ids == first.ids and again.ledger.reused_tokens == 0


def test_the_beat_counts_prompt_tokens_as_the_ledgers_do() -> None:
    loop = Loop(rows=4)
    page = list(range(1, 40))
    loop.ask(1, prompt_ids=page, max_new_tokens=3, strategy="greedy")
    loop.turn(6)
    loop.ask(2, prompt_ids=page, max_new_tokens=3, n=3, temperature=9.0)
    loop.ask(3, prompt_ids=[*page, 8], max_new_tokens=3, strategy="beam", num_beams=3, n=2)
    loop.ask(4, prompt_ids=[5] * 2000)
    loop.worker.take(Work(id=5, group=0, request=m.Score(ids=[3] * (ARCH.context + 100), stride=50)))
    loop.turn(60)
    loop.worker.beat()
    beat = loop.link.sent.pop()
    results = [reply for reply in loop.link.sent if isinstance(reply, m.Generated)]
    ledgers = [ledger for r in results for ledger in (r.ledger, *(other.ledger for other in r.others))]
    assert len(ledgers) == 6 and sum(ledger.reused_tokens for ledger in ledgers) > 0
    assert isinstance(beat, Beat)
    (scored,) = (reply for reply in loop.link.sent if isinstance(reply, m.Scored))
    assert beat.prompt_tokens == sum(ledger.prompt_tokens for ledger in ledgers) + scored.computed


@pytest.fixture
def without_accents(tmp_path: Path) -> Path:
    """Model whose vocabulary lacks the bytes of "é", which its tokenizer drops silently."""
    tokenizer = json.loads((DEMO_FOLDER / "tokenizer.json").read_text())
    lacking = set("Ã©")
    model = tokenizer["model"]
    model["vocab"] = {token: index for token, index in model["vocab"].items() if not lacking & set(token)}
    model["merges"] = [pair for pair in model["merges"] if not lacking & set("".join(pair))]
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    return tmp_path


def test_a_bad_word_that_the_model_cannot_write_is_refused(without_accents: Path) -> None:
    loop = Loop(folder=without_accents)
    loop.ask(1, prompt="a", bad_words=["no", "é"], max_new_tokens=3)
    loop.ask(2, prompt="a", bad_words=["no"], max_new_tokens=3)
    loop.turn(6)
    refusal, result = loop.link.sent
    assert isinstance(refusal, m.Failure) and refusal.code == "bad_request"
    assert refusal.message == "bad_words: this model has no token for 'é'"
    assert isinstance(result, m.Generated)


def test_other_texts_that_the_model_cannot_write_do_no_harm(without_accents: Path) -> None:
    loop = Loop(folder=without_accents)
    loop.ask(1, prompt="é", stop=["é"], logit_bias=[(3, 1.0)], max_new_tokens=3)
    loop.worker.take(Work(id=2, group=0, request=m.Tokenize(text="é")))
    loop.worker.take(Work(id=3, group=0, request=m.Score(text="é")))
    loop.turn(6)
    replies = {reply.id: reply for reply in loop.link.sent}
    assert isinstance(replies[1], m.Generated) and replies[1].ledger.prompt_tokens == 1, (
        "it starts from the end of text"
    )
    assert isinstance(replies[2], m.Tokenized) and replies[2].ids == []
    assert isinstance(replies[3], m.Failure) and replies[3].code == "bad_request"


@pytest.mark.parametrize(("before", "room"), [((7,), 24), ((7, 8), 24), ((7, 8), 1)])
def test_what_stands_before_a_text_stays_when_that_is_cut(before: tuple[int, ...], room: int) -> None:
    """As transformers cuts a text: [CLS] is none of its words. A prompt of tokens is cut as it is."""
    loop = Loop()
    loop.worker._requests._text.before = before
    new = ARCH.context - room
    words = loop.worker._requests._text.encode("x " * 2000)[len(before) :]
    loop.ask(1, prompt="x " * 2000, max_new_tokens=new, truncate="left")
    loop.ask(2, prompt_ids=[*before, *words][:1500], max_new_tokens=new, truncate="left")
    (first,), (second,) = loop.scheduler.find(1), loop.scheduler.find(2)
    kept = before[: room - 1]
    assert first.ids == [*kept, *words[len(words) - room + len(kept) :]] and len(first.ids) == room
    assert second.ids == [*before, *words][:1500][-room:]
