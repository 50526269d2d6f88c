"""Every request and error, through a real daemon, with the embedded model."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq

from protocol import AsyncClient, Client, messages as m
from protocol.client import Stream
from protocol.errors import BadModel, BadRequest, Busy, NotLoaded, TooLong, UnknownModel
from scripts.daemon import Daemon
from scripts.reliability.daemon import Behaviour, FakeDaemon
from server.catalogue.architecture import read_architecture
from server.catalogue.catalogue import DEMO_FOLDER
from server.checkpoint.tokenizer import read_tokenizer
from server.config import Config
from server.gateway.replicas import rows_share
from server.worker.text import Text
from tests.conftest import held, wait_for

PROMPT = "Shall I compare thee"
ARCH = read_architecture(DEMO_FOLDER)
TEXT = Text(read_tokenizer(DEMO_FOLDER), ARCH)


def test_hello_describes_the_server(client: Client) -> None:
    info = client.hello()
    assert info.protocol == "1.0"
    blocks = ["int8", "int4", "fp32"]
    assert {e.name: e.precisions for e in info.engines} == {
        "native": blocks, "onnx": blocks, "torch": ["fp32", "bf16", "int8"], "optimum": ["fp32", "int8"],
    }  # fmt: skip
    assert {e.name: len(e.strategies) for e in info.engines} == {"native": 7, "onnx": 7, "torch": 3, "optimum": 3}
    assert {e.name: e.compiles for e in info.engines if e.compiles} == {"torch": ["fp32", "bf16"]}
    assert {p.name for p in info.parameters} == set(m.SETTINGS)
    assert info.cores > 0 and info.memory_bytes > 1 << 28 and info.cpu


def test_a_generation_comes_with_its_ledger(client: Client) -> None:
    began = time.monotonic()
    result = client.generate(PROMPT, seed=1, max_new_tokens=20)
    whole_ms = (time.monotonic() - began) * 1000
    ledger = result.ledger
    assert len(result.ids) == ledger.new_tokens == 20
    assert ledger.prompt_tokens == len(TEXT.encode(PROMPT))
    assert 0 < ledger.prefill_ms <= ledger.inference_ms <= whole_ms
    assert ledger.inference_ms == pytest.approx(ledger.prefill_ms + ledger.decode_ms)
    assert ledger.tokens_per_second == pytest.approx(19 / ledger.decode_ms * 1000)
    assert (result.model, result.engine, result.precision, result.finish_reason) == ("demo", "native", "int8", "length")
    assert result.settings == {p.name: p.default for p in client.hello().parameters} | {"seed": 1, "max_new_tokens": 20}
    assert len(result.digest) == 64


def test_a_stream_is_the_result_in_pieces(client: Client) -> None:
    stream = client.stream(PROMPT, seed=2, max_new_tokens=60)
    pieces = list(stream)
    assert "".join(p.text for p in pieces) == stream.result.text
    assert [i for p in pieces for i in p.ids] == stream.result.ids
    assert [p.seq for p in pieces] == list(range(len(pieces))) and stream.result.seq == len(pieces)
    assert len(pieces[0].ids) == 1, "the first token is sent at once"
    assert stream.result.text == client.generate(PROMPT, seed=2, max_new_tokens=60).text


def test_a_stream_has_as_few_pieces_as_it_asks_for(client: Client) -> None:
    asked: dict[str, Any] = {"seed": 2, "max_new_tokens": 60, "ignore_eos": True}
    stream = client.stream(PROMPT, stream_interval_ms=1000, **asked)
    few = list(stream)
    assert len(few[0].ids) == 1 and len(few) <= 3 + stream.result.ledger.inference_ms / 1000
    every = list(client.stream(PROMPT, stream_interval_ms=0, speculate=0, **asked))
    assert [i for p in every for i in p.ids] == [i for p in few for i in p.ids] and len(every) == 60
    with pytest.raises(BadRequest, match="stream_interval_ms must be a whole number <= 1000"):
        client.stream(PROMPT, stream_interval_ms=1001)


def test_seeds(client: Client) -> None:
    texts = [client.generate(PROMPT, seed=seed).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    drawn = client.generate(PROMPT)
    assert client.generate(PROMPT, seed=drawn.settings["seed"]).text == drawn.text
    assert client.generate(PROMPT, strategy="greedy").ids == client.generate(PROMPT, temperature=0, seed=9).ids


def test_prompts_as_text_and_as_tokens(client: Client) -> None:
    ids = TEXT.encode(PROMPT)
    assert client.generate(prompt_ids=ids, strategy="greedy").text == client.generate(PROMPT, strategy="greedy").text
    assert client.generate("", strategy="greedy").ledger.prompt_tokens == 1
    with pytest.raises(BadRequest, match="4096"):
        client.generate(prompt_ids=[4096])


@pytest.mark.parametrize("prompt", ["naïve café", "Ω≈ç√∫ – 汉字", "🙂🙃 👩‍👩‍👧", "a\x00b", "\n\n  tab\t"])
def test_unicode_goes_in_and_whole_characters_come_out(client: Client, prompt: str) -> None:
    # Hot sampling over all tokens gives any bytes: pieces hold replacement characters only where the whole text does.
    for seed in range(3):
        stream = client.stream(prompt, seed=seed, temperature=5.0, top_k=0, max_new_tokens=40)
        pieces = [p.text for p in stream]
        assert "".join(pieces) == stream.result.text
        increments = TEXT.vocabulary.increments()
        assert stream.result.text == "".join([increments.push(t) for t in stream.result.ids] + [increments.flush()])


def test_stop_strings(client: Client) -> None:
    whole = client.generate(PROMPT, seed=3, max_new_tokens=80)
    stop = whole.text[10:14]
    stream = client.stream(PROMPT, seed=3, max_new_tokens=80, stop=[stop])
    assert "".join(p.text for p in stream) == stream.result.text == whole.text[: whole.text.index(stop)]
    assert stream.result.finish_reason == "stop"


def test_the_context_is_kept_to(client: Client) -> None:
    long = "word " * 1200
    with pytest.raises(TooLong, match=r"context of 1024.*truncate"):
        client.generate(long)
    with pytest.raises(TooLong, match="at most 1023 with a context of 1024 tokens, got 1024"):
        client.generate("x", max_new_tokens=1024)
    result = client.generate(long, truncate="left", max_new_tokens=10)
    assert result.ledger.prompt_tokens == 1014
    assert result.prompt_truncated == len(TEXT.encode(long)) - 1014
    full = client.generate("x", max_new_tokens=1023, ignore_eos=True)
    assert len(full.ids) == 1023


def test_other_settings_change_the_text(client: Client) -> None:
    plain = client.generate(PROMPT, seed=4, max_new_tokens=40).ids
    for setting in (
        {"top_k": 3},
        {"top_k": 0, "top_p": 0.4},
        {"min_p": 0.3},
        {"temperature": 0.3},
        {"repetition_penalty": 1.8},
    ):
        assert client.generate(PROMPT, seed=4, max_new_tokens=40, **setting).ids != plain


def test_what_is_wrong_is_named(client: Client) -> None:
    with pytest.raises(BadRequest, match=r"temperature"):
        client.generate(PROMPT, temperature=-1)
    with pytest.raises(BadRequest, match="exactly one"):
        client.generate()
    with pytest.raises(BadRequest, match="no setting 'heat'"):
        client.generate(PROMPT, heat=1)
    with pytest.raises(UnknownModel, match=r"no model 'gpt5' here; there are: demo"):
        client.load("gpt5")
    with pytest.raises(BadModel, match="int8, int4, fp32"):
        client.load("demo", precision="int2")
    with pytest.raises(
        NotLoaded,
        match=r"demo with precision fp32 is not loaded; load it first \(there is: demo/native/int8 \(ready\)\)",
    ):
        client.generate(PROMPT, model="demo", precision="fp32")
    with pytest.raises(NotLoaded):
        client.unload("gpt2")


def test_loading_again_is_immediate(client: Client) -> None:
    loaded = client.load("demo")
    rows = read_architecture(DEMO_FOLDER).default_rows("native", "int8", rows_share(Config()))
    assert loaded.already and loaded.byte_level
    assert (loaded.engine, loaded.precision, loaded.context, loaded.rows) == ("native", "int8", 1024, rows)


def test_models_ping_and_stats(client: Client) -> None:
    demo = client.models()[0]
    assert demo.name == "demo" and demo.parameters == ARCH.parameters and not demo.problem
    assert {(p.precision, p.loaded) for p in demo.precisions if p.engine == "native"} == {
        ("int8", True),
        ("int4", False),
        ("fp32", False),
    }
    worker = client.ping().workers[0]
    assert (worker.model, worker.state, worker.byte_level) == ("demo", "ready", True) and worker.moved_ms_ago < 2000
    before = client.stats()
    client.generate(PROMPT, max_new_tokens=5)
    wait_for(lambda: client.stats().workers[0].new_tokens >= before.workers[0].new_tokens + 5)
    after = client.stats()
    assert after.requests["generate"] == before.requests["generate"] + 1
    assert after.rss_bytes < 60e6


def test_many_requests_at_once_each_get_their_own_text(shared_daemon: Daemon, client: Client) -> None:
    alone = {seed: client.generate(PROMPT, seed=seed, max_new_tokens=12).text for seed in range(6)}
    results: dict[int, str] = {}

    def ask(seed: int) -> None:
        with Client(shared_daemon.endpoint) as own:
            results[seed] = own.generate(PROMPT, seed=seed, max_new_tokens=12).text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == alone


def test_streams_share_a_batch(shared_daemon: Daemon, client: Client) -> None:
    """Many at once, from one client: each its own text, several in each step."""
    alone = [client.generate(PROMPT, seed=seed, max_new_tokens=200, ignore_eos=True, top_k=5) for seed in range(4)]
    with held(*shared_daemon.workers()):
        streams = [client.stream(PROMPT, seed=seed, max_new_tokens=200, ignore_eos=True, top_k=5) for seed in range(4)]
        wait_for(lambda: client.stats().open_requests >= 5)  # what others have left is held, too
    for stream in streams:
        list(stream)
    # int8 texts may part where a batch's rounding tips a draw; most do not.
    assert sum(s.result.ids == a.ids for s, a in zip(streams, alone, strict=True)) >= 2
    assert max(s.result.ledger.mean_batch for s in streams) > 1.5


def test_a_waiting_stream_knows_its_place(one_row: Client) -> None:
    running = one_row.stream("x", n=8, max_new_tokens=1000, ignore_eos=True)
    next(running)
    events: list[object] = []
    one_row.connection.submit(m.Generate(prompt="y", stream=True, max_new_tokens=1), events.append, 20)
    wait_for(lambda: bool(events))
    place = events[0]
    assert isinstance(place, m.Progress) and place.stage == "waiting" and 0 < place.done <= place.total <= 8
    running.close()
    wait_for(lambda: isinstance(events[-1], m.Generated))


def test_reuse_shows_in_the_ledger_and_changes_nothing(client: Client) -> None:
    page = "When forty winters shall besiege thy brow,\nAnd dig deep trenches in thy beauty's field,\n" * 20
    fresh = client.generate(page, strategy="greedy", deterministic=True)
    first = client.generate(page, strategy="greedy")
    again = client.generate(page, strategy="greedy")
    longer = client.generate(page + again.text, strategy="greedy")
    assert fresh.text == first.text == again.text
    assert fresh.ledger.reused_tokens == 0
    assert again.ledger.reused_tokens == again.ledger.prompt_tokens - 1
    assert longer.ledger.reused_tokens > again.ledger.prompt_tokens
    quickest = min(client.generate(page, strategy="greedy").ledger.prefill_ms for _ in range(5))
    assert quickest < fresh.ledger.prefill_ms / 3


def test_several_continuations(client: Client) -> None:
    result = client.generate(PROMPT, n=4, seed=5, max_new_tokens=15)
    assert len(result.others) == 3
    assert [o.seed for o in result.others] == [6, 7, 8]
    assert len({result.text, *(o.text for o in result.others)}) == 4
    stream = client.stream(PROMPT, n=3, seed=5, max_new_tokens=15)
    pieces = list(stream)
    for index, text in enumerate([stream.result.text, *(o.text for o in stream.result.others)]):
        assert "".join(p.text for p in pieces if p.index == index) == text


def test_control_is_answered_while_work_goes_on(client: Client) -> None:
    with client.stream("x", max_new_tokens=1000, ignore_eos=True) as stream:
        next(stream)
        latencies = []
        for _ in range(20):
            began = time.monotonic()
            client.ping()
            latencies.append(time.monotonic() - began)
        assert sorted(latencies)[10] < 0.1


def test_a_client_with_too_many_open_requests_is_told_busy(shared_daemon: Daemon, client: Client) -> None:
    def stream() -> Stream:
        return client.stream("x", n=8, max_new_tokens=1000, ignore_eos=True)

    streams = [stream()]
    next(streams[0])
    with held(*shared_daemon.workers()):
        streams += [stream() for _ in range(63)]
        wait_for(lambda: client.stats().open_requests >= 64)
        with pytest.raises(Busy, match="64 open requests"):
            client.generate("x", wait=False, timeout=20)
    for one in streams:
        one.close()
    wait_for(lambda: client.stats().open_requests <= 1)


def test_deadlines(tmp_path: Path) -> None:
    with FakeDaemon(tmp_path, Behaviour(delay_ms=20)) as daemon, Client(daemon.endpoint) as client:
        client.load("demo")
        result = client.generate("x", n=2, max_new_tokens=1000, ignore_eos=True, timeout=2)
        assert result.finish_reason == "deadline" and 0 < len(result.ids) < 1000


def test_asyncio(shared_daemon: Daemon, client: Client) -> None:
    async def run() -> None:
        async with AsyncClient(shared_daemon.endpoint) as own:
            first, second = await asyncio.gather(own.generate(PROMPT, seed=1), own.generate(PROMPT, seed=2))
            assert first.text == client.generate(PROMPT, seed=1).text
            assert second.text == client.generate(PROMPT, seed=2).text
            pieces = []
            async with own.stream(PROMPT, seed=1) as stream:
                async for piece in stream:
                    pieces.append(piece.text)
            assert "".join(pieces) == stream.result.text == first.text
            assert (await own.load("demo", on_progress=print)).already
            assert (await own.models())[0].name == "demo"
            assert (await own.ping()).workers
            assert (await own.stats()).peers >= 2
            assert (await own.tokenize(PROMPT)).ids == TEXT.encode(PROMPT)
            with pytest.raises(NotLoaded):
                await own.unload("gpt2")

    asyncio.run(asyncio.wait_for(run(), 30))


# A plain REQ socket with msgpack alone: none of our code.


def raw(endpoint: str, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.REQ)
    socket.linger = 0
    socket.rcvtimeo = 20_000
    socket.connect(endpoint)
    answers = []
    for request in requests:
        socket.send(msgpack.packb(request))
        frames = socket.recv_multipart()
        assert len(frames) == 1
        answers.append(msgpack.unpackb(frames[0]))
    assert not socket.poll(200), "exactly one reply each"
    socket.close()
    context.term()
    return answers


def test_a_raw_req_socket_gets_exactly_one_reply_each(shared_daemon: Daemon) -> None:
    replies = raw(
        shared_daemon.endpoint,
        {"v": 1, "id": 1, "type": "load", "model": "demo"},
        {"v": 1, "id": 2, "type": "generate", "prompt": PROMPT, "seed": 1, "stream": False},
        {"v": 1, "id": 3, "type": "generate", "prompt": PROMPT, "top_k": "many"},
        {"v": 7, "id": 4, "type": "ping"},
        {"v": 1, "type": "ping"},
    )
    load, text = replies[:2]
    bad, old = replies[2:4]
    (ping,) = replies[4:]
    assert load["type"] == "result" and load["already"]
    assert (
        text["type"] == "result" and text["of"] == "generate" and text["id"] == 2 and text["ledger"]["inference_ms"] > 0
    )
    assert (bad["type"], bad["code"], bad["id"]) == ("error", "bad_request", 3) and "top_k" in bad["message"]
    assert (old["type"], old["code"], old["id"]) == ("error", "version_mismatch", 4)
    assert ping["of"] == "ping" and ping["id"] == 0


def test_garbage_gets_an_error_and_harms_nobody(
    shared_daemon: Daemon, client: Client, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = 20_000
    socket.connect(shared_daemon.endpoint)
    stream = client.stream(PROMPT, max_new_tokens=300, ignore_eos=True)
    for garbage in (b"", b"\xc1", b"\x91" * 9999, msgpack.packb([]), msgpack.packb({"v": 1, "id": 1, "type": "x"})):
        socket.send(garbage)
        assert msgpack.unpackb(socket.recv())["code"] == "bad_request"
    socket.send_multipart([b"a"] * 50)  # no envelope is that deep: dropped
    socket.send(msgpack.packb({"v": 1, "id": 2, "type": "ping"}))
    assert msgpack.unpackb(socket.recv())["id"] == 2
    assert len(list(stream)) > 0 and len(stream.result.ids) == 300
    socket.close()


def test_an_id_may_not_be_open_twice(shared_daemon: Daemon, context: zmq.Context[zmq.Socket[bytes]]) -> None:
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.rcvtimeo = 20_000
    socket.connect(shared_daemon.endpoint)
    long = {"v": 1, "id": 5, "type": "generate", "prompt": "x", "max_new_tokens": 900, "ignore_eos": True}
    with held(*shared_daemon.workers()):
        socket.send(msgpack.packb(long))
        socket.send(msgpack.packb(long))
        answer = msgpack.unpackb(socket.recv())
        assert answer["code"] == "bad_request" and "still open" in answer["message"]
        socket.send(msgpack.packb({"v": 1, "id": 6, "type": "cancel", "target": 5}))
        assert socket.poll(20_000)
    answers = {a["id"]: a for a in (msgpack.unpackb(socket.recv()) for _ in range(2))}
    assert answers[6]["found"] and answers[5].get("finish_reason", answers[5].get("code")) == "cancelled"
    socket.close()


def test_a_prompt_is_never_logged(shared_daemon: Daemon, client: Client) -> None:
    before = len(shared_daemon.logged())
    client.generate("xyzzy plugh", max_new_tokens=3)
    wait_for(lambda: "new 3 tokens; queue" in shared_daemon.logged()[before:])
    assert "xyzzy" not in shared_daemon.logged()


def test_the_servers_help_and_refusals() -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "server", *arguments], capture_output=True, text=True, timeout=30, check=False
        )

    assert "--preload" in run("--help").stdout
    for arguments, says in (
        (["--endpoint", "tcp://0.0.0.0:5757"], "ssh -L"),
        (["--endpoint", "localhost"], "is not an endpoint"),
        (["--preload", "gpt5"], "no model 'gpt5'"),
        (["--preload", "demo/native/int2"], "int8, int4, fp32"),
        (["--threads", "0"], "must be a whole number from 1 to 1024, got 0"),
    ):
        done = run(*arguments)
        assert done.returncode and says in done.stderr, arguments
        assert "Traceback" not in done.stderr


def test_a_taken_port_is_said(shared_daemon: Daemon) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "--endpoint", shared_daemon.endpoint],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1 and "is in use" in done.stderr and "Traceback" not in done.stderr


def test_the_sampler_s_logarithms_at_a_low_temperature(client: Client) -> None:
    """The alternatives are the model's, and their distances are its distances by the temperature."""
    asked: dict[str, Any] = {"max_new_tokens": 4, "temperature": 0.01, "top_k": 0, "logprobs": 5, "seed": 1}
    model = client.generate(PROMPT, **asked).logprobs
    sampler = client.generate(PROMPT, logprobs_of="sampler", **asked).logprobs
    for plain, drawn in zip(model, sampler, strict=True):
        assert [x.id for x in drawn.top] == [x.id for x in plain.top]
        distances = [(x.logprob - plain.top[0].logprob) / 0.01 for x in plain.top]
        assert [x.logprob - drawn.top[0].logprob for x in drawn.top] == pytest.approx(distances, rel=1e-3, abs=1e-2)


def test_a_stop_string_waits_for_the_least_number_of_tokens(client: Client) -> None:
    asked: dict[str, Any] = {"strategy": "greedy", "max_new_tokens": 40, "ignore_eos": True}
    whole = client.generate(PROMPT, **asked)
    stop = whole.text[2]
    early = client.generate(PROMPT, stop=[stop], **asked)
    stream = client.stream(PROMPT, stop=[stop], min_new_tokens=12, **asked)
    text = "".join(piece.text for piece in stream)
    late = stream.result
    assert early.text == whole.text[: whole.text.index(stop)] and len(early.ids) < 12 <= len(late.ids)
    assert text == late.text == whole.text[: len(text)] and stop in text, "what was complete before stays"
    assert late.finish_reason == "stop" and whole.text[len(text)] == stop


@pytest.mark.parametrize("strategy", ["beam", "beam_sample", "diverse_beam", "contrastive"])
def test_searches_by_the_socket(client: Client, strategy: str) -> None:
    stream = client.stream("Shall I", strategy=strategy, max_new_tokens=12, seed=4)
    text = "".join(piece.text for piece in stream)
    again = client.generate("Shall I", strategy=strategy, max_new_tokens=12, seed=4)
    assert text == stream.result.text == again.text and text
    assert (again.score is None) == (strategy == "contrastive")


@pytest.mark.parametrize("top", [1, 4])
def test_a_score_tells_the_likeliest_tokens_at_each_place(client: Client, top: int) -> None:
    """The values of one token are the same float, so that who compares them finds a greedy choice."""
    ids = [*TEXT.encode(PROMPT), *client.generate(PROMPT, strategy="greedy", max_new_tokens=20).ids] * 50
    scored = client.score(ids=ids, top=top, bos="never")
    assert scored.logprobs == client.score(ids=ids, bos="never").logprobs and len(ids) > 1024, "in windows, too"
    assert [len(at) for at in scored.top] == [0] + [top] * (len(ids) - 1)
    found = 0
    for token, logprob, at in zip(ids[1:], scored.logprobs[1:], scored.top[1:], strict=True):
        assert [one.logprob for one in at] == sorted((one.logprob for one in at), reverse=True)
        own = [one.logprob for one in at if one.id == token]
        assert own in ([], [logprob])
        found += bool(own)
    assert found > len(ids) // 3
    greedy = client.generate(prompt_ids=ids[:30], strategy="greedy", max_new_tokens=1, logprobs=0)
    assert greedy.ids == [scored.top[30][0].id]
    assert greedy.logprobs[0].logprob == pytest.approx(scored.top[30][0].logprob, abs=1e-4)


def test_a_score_tells_no_more_than_one_answer_holds(client: Client) -> None:
    with pytest.raises(BadRequest, match="20 alternatives for each of 2501 tokens are more than the 50,000 of one"):
        client.score(ids=[5] * 2501, top=20)
    assert len(client.score(ids=[5] * 2500, top=20).top) == 2500


def test_tokenize_tells_of_the_tokenizer_where_asked(client: Client) -> None:
    about = client.tokenize("", about=True).about
    end = "<|endoftext|>"
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), end)
    assert about == m.TokenizerInfo(context=1024, before=[], bos=end, eos=[end], chat_template="", names=names)
    assert client.tokenize("x").about is None
