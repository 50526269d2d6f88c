"""The door for HTTP with a server that says what the test wants: who leaves, who may come in, conversations."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

pytest.importorskip("starlette", reason="needs requirements-http.txt")

from uvicorn.protocols.http.h11_impl import H11Protocol

from client.doors.http.__main__ import listen
from client.doors.http.fields import Completion, read
from client.doors.http.guard import Guard, read_tokens
from client.doors.http.logprobs import Listing
from client.doors.http.patience import Patient
from protocol import messages as m
from protocol.errors import WorkerDied
from protocol.keys import KeyFileError
from protocol.testing import Answer, FakeServer, generated
from tests.client.doors.serving import ask, opened
from tests.conftest import wait_for

ADMIN, USER = "an-admin-s-long-token", "a-user-s-long-token-"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_who_leaves_ends_what_was_written_for_them(stream: bool, begun: bool) -> None:
    asked, cancelled = threading.Event(), threading.Event()
    never = threading.Event()

    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Generate):
            asked.set()
            return ["Hi", never] if begun else [never]
        if isinstance(request, m.Cancel):
            cancelled.set()
        return None

    with FakeServer(answer) as server, opened(server.endpoint) as url:
        with connected(url) as caller:
            body = json.dumps({"prompt": "x", "stream": stream}).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body)
            assert asked.wait(60)
            if stream and begun:
                assert b"200 OK" in caller.recv(4096)
        assert cancelled.wait(60)


def test_an_error_in_a_stream_is_its_last_event() -> None:
    def answer(request: m.AnyRequest) -> Answer:
        return ["Hi", WorkerDied("the worker is gone")] if isinstance(request, m.Generate) else None

    with FakeServer(answer) as server, opened(server.endpoint) as url:
        events = lines(url, {"prompt": "x", "stream": True})
        assert [event["choices"][0]["text"] for event in events[:-1]] == ["Hi"]
        assert events[-1]["error"]["message"] == "the worker is gone"
        assert ask(f"{url}/v1/completions", {"prompt": "x"}) == (503, {"error": events[-1]["error"]})


def lines(url: str, body: dict[str, Any], path: str = "/v1/completions") -> list[Any]:
    """Return the events of a stream, without the word at its end."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    connection.request("POST", path, json.dumps(body))
    told = connection.getresponse().read().decode()
    connection.close()
    return [json.loads(line[6:]) for line in told.splitlines() if line.startswith("data: {")]


def test_a_text_that_was_cut_off_is_no_answer() -> None:
    def answer(request: m.AnyRequest) -> Answer:
        return generated(request, "a part", finish_reason="deadline") if isinstance(request, m.Generate) else None

    with FakeServer(answer) as server, opened(server.endpoint) as url:
        status, told = ask(f"{url}/v1/completions", {"prompt": "x"})
        assert status == 504 and "was not done within 600 s" in told["error"]["message"]


def test_where_no_daemon_is_the_answers_say_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with opened(f"tcp://127.0.0.1:{port}") as url:
        for path, body in (("/health", None), ("/v1/completions", {"prompt": "x"})):
            status, told = ask(f"{url}{path}", body)
            assert status == 503 and told["error"]["type"] == "server_error" and str(port) in told["error"]["message"]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[str]:
    file = tmp_path / "tokens"
    file.write_text(f"# for the tests\nadmin {ADMIN}\n\ngenerate {USER}\n")
    file.chmod(0o600)

    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Generate):
            return generated(request, "hello")
        return m.Unloaded(id=None, names=["demo/native/int8"]) if isinstance(request, m.Unload) else None

    guard = Guard({"door.example"}, {"https://page.example"}, read_tokens(file))
    with FakeServer(answer) as server, opened(server.endpoint, guard) as url:
        yield url


def test_a_token_is_a_role(guarded: str) -> None:
    path = f"{guarded}/v1/completions"
    for wrong in ({}, {"Authorization": "Bearer nobody-knows-this-token"}, {"Authorization": f"Basic {ADMIN}"}):
        status, told = ask(path, {"prompt": "x"}, **wrong)
        assert (status, told["error"]["code"]) == (401, "invalid_api_key")
    for token in (ADMIN, USER):
        assert ask(path, {"prompt": "x"}, Authorization=f"Bearer {token}")[1]["choices"][0]["text"] == "hello"
    unload = f"{guarded}/models/unload"
    assert ask(unload, {"model": "demo"}, Authorization=f"Bearer {USER}")[0] == 403
    assert ask(unload, {"model": "demo"}, Authorization=f"Bearer {ADMIN}") == (200, {"ids": ["demo/native/int8"]})
    assert ask(f"{guarded}/health")[0] == 503, "which needs none, and nothing is loaded"


def test_pages_and_names_that_were_not_given_are_refused(guarded: str) -> None:
    """A name may lead here by DNS rebinding; an address and localhost cannot."""
    path, token = f"{guarded}/v1/models", f"Bearer {USER}"
    for host, status in (
        ("evil.example", 403), ("door.example:80", 200), ("LOCALHOST:9", 200), ("[::1]:80", 200), ("", 403),
        ("10.0.0.7", 200), ("127.0.0.1.evil.example", 403), ("evil.example@127.0.0.1", 200), ("[", 403),
    ):  # fmt: skip
        assert (host, ask(path, Authorization=token, Host=host)[0]) == (host, status)
    for origin, status in (("https://evil.example", 403), ("null", 403), ("https://page.example", 200)):
        assert (origin, ask(path, Authorization=token, Origin=origin)[0]) == (origin, status)


def test_pages_that_were_given_are_answered(guarded: str) -> None:
    """A browser asks first, without a token, and hands the answer on where it names the page."""
    for origin, allowed in (("https://page.example", "https://page.example"), ("https://evil.example", None)):
        connection = http.client.HTTPConnection(urlsplit(guarded).netloc, timeout=60)
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization"
        connection.request("OPTIONS", "/v1/completions", headers=asked)
        assert connection.getresponse().getheader("access-control-allow-origin") == allowed
        connection.close()


def test_a_body_is_bounded(guarded: str) -> None:
    status, told = ask(f"{guarded}/v1/completions", b" " * (4 << 20) + b"{}", Authorization=f"Bearer {USER}")
    assert status == 413 and "over the limit" in told["error"]["message"]
    many = {"prompt": ["x"] * 129}
    assert ask(f"{guarded}/v1/completions", many, Authorization=f"Bearer {USER}")[0] == 400


def connected(url: str) -> socket.socket:
    return socket.create_connection((str(urlsplit(url).hostname), urlsplit(url).port or 0), 60)


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("sent", [b"", HEAD, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"])
def test_who_says_nothing_is_left(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first request, within its head, and within the next one's."""
    monkeypatch.setattr("client.doors.http.patience.HEAD_S", 0.1)
    with FakeServer() as server, opened(server.endpoint) as url, connected(url) as caller:
        caller.sendall(sent)
        while caller.recv(4096):
            pass


def test_of_a_connection_that_has_ended_nothing_stays() -> None:
    """Eight kilobytes for a minute each are hundreds of megabytes where each request has a connection of its own."""

    def held() -> list[object]:
        gc.collect()
        return [found for found in gc.get_objects() if issubclass(type(found), H11Protocol)]

    with FakeServer() as server, opened(server.endpoint) as url:
        assert ask(f"{url}/v1/models")[0] == 200
        with connected(url) as caller:
            caller.sendall(HEAD)
            wait_for(lambda: len(held()) == 1)
        wait_for(lambda: not held())


def test_who_waited_long_for_an_answer_has_time_for_the_next_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose answer came just before a look is not closed by that look."""
    busy = threading.Event()
    closed: list[bool] = []
    look = Patient._look

    def seen(protocol: Any, before: object) -> None:
        if protocol.cycle is None:  # the request has not come yet
            protocol._look_later()
            return
        look(protocol, before)
        if protocol.cycle and protocol.cycle.response_complete:
            closed.append(protocol.transport.is_closing())
        elif protocol.cycle:
            busy.set()

    def answer(request: m.AnyRequest) -> Answer:
        return [busy, generated(request, "x")] if isinstance(request, m.Generate) else None

    monkeypatch.setattr("client.doors.http.patience.HEAD_S", 0.2)
    monkeypatch.setattr(Patient, "_look", seen)
    with FakeServer(answer) as server, opened(server.endpoint) as url, connected(url) as caller:
        caller.sendall(HEAD + b'Content-Length: 15\r\n\r\n{"prompt": "x"}')
        while caller.recv(4096):
            pass
    assert closed == [False, True], "but by the next one"


@pytest.mark.parametrize(
    ("told", "scores", "scored"),
    [
        ((1, 2), 2, [1, 2]), ((1,), 2, [1, 2]), ((), 2, [1, 2]), ((0, 1, 1, 2), 2, [1, 2]), ((0, 9, 2), 2, [1, 2]),
        ((0, 1, 9), 2, [1, 2]), ((0, 2, 1), 2, [1, 2]), ((0, -1, 2), 2, [1, 2]), ((-1, 1, 2), 2, [1, 2]),
        ((0, 1, 2), 1, [1, 2]), ((0, 1, 2), 3, [1, 2]), ((0, 1, 2), 0, [1, 2]), ((0, 1, 2), 2, [1, 3]),
        ((0, 1, 2), 2, [1]),
    ],
)  # fmt: skip
def test_lists_of_another_server_that_do_not_fit_are_no_fault_of_the_door(
    told: tuple[int, ...], scores: int, scored: list[int]
) -> None:
    about = m.TokenizerInfo(context=100, before=[], bos="", eos=[], chat_template="")

    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Tokenize):
            return m.Tokenized(id=None, text="ab", ids=[1, 2], offsets=[*told], about=about)
        if isinstance(request, m.Score):
            sums: dict[str, Any] = {"perplexity": 1.0, "bits_per_byte": 1.0, "elapsed_ms": 1.0}
            return m.Scored(id=None, ids=scored, logprobs=[None, *[-1.0] * (scores - 1)][:scores], **sums)
        return None

    with FakeServer(answer) as server, opened(server.endpoint) as url:
        body = {"prompt": "ab", "echo": True, "logprobs": 0, "max_tokens": 0}
        status, answered = ask(f"{url}/v1/completions", body)
        assert status == 503 and "the server's" in answered["error"]["message"], answered
        if told != (0, 1, 2):
            status, answered = ask(f"{url}/tokenize", {"prompt": "ab", "return_token_strs": True})
            assert status == 503 and "do not fit the tokens" in answered["error"]["message"]


def test_who_leaves_within_a_body_is_no_fault(caplog: pytest.LogCaptureFixture) -> None:
    with FakeServer() as server, opened(server.endpoint) as url:
        with connected(url) as caller:
            caller.sendall(HEAD + b"Content-Length: 100\r\n\r\n{")
        assert ask(f"{url}/v1/models")[0] == 200
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_when_the_door_closes_is_told_so(stream: bool, caplog: pytest.LogCaptureFixture) -> None:
    asked, never = threading.Event(), threading.Event()

    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Generate):
            asked.set()
            return ["Hi", never]
        return None

    body = json.dumps({"prompt": "x", "stream": stream}).encode()
    with FakeServer(answer) as server, contextlib.ExitStack() as stack:
        with opened(server.endpoint) as url:
            caller = stack.enter_context(connected(url))
            caller.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            assert asked.wait(60)
            told = caller.recv(4096) if stream else b""
        while part := caller.recv(4096):
            told += part
    assert b"gpt2d-http is stopping" in told
    assert [record for record in caplog.records if record.exc_info] == []


def test_small_pieces_are_sent_at_once() -> None:
    """By asyncio, of a socket that says it is TCP. Otherwise a piece may wait 40 ms for an acknowledgement."""

    async def accepted() -> int:
        taken: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        class Taking(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                taken.set_result(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                transport.close()

        with contextlib.closing(listen("127.0.0.1", 0)) as listener:
            async with await asyncio.get_running_loop().create_server(Taking, sock=listener):
                with socket.create_connection(listener.getsockname()):
                    return await taken

    assert asyncio.run(accepted())


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX'")
def test_files_of_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    for text, sentence in (
        ("", "holds no tokens"), ("generate short", "line 1 must be `ROLE TOKEN`"), (f"root {USER}", "line 1"),
        ("generate tökens-are-ascii-only", "not ASCII"),
    ):  # fmt: skip
        file.write_text(text, encoding="utf-8")
        file.chmod(0o600)
        with pytest.raises(KeyFileError, match=sentence) as wrong:
            read_tokens(file)
        assert USER not in str(wrong.value)
    file.write_text(f"generate {USER}")
    file.chmod(0o644)
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_tokens(file)


def test_the_command() -> None:
    """In a process of its own: what it refuses, and that it opens, says where, and ends with a signal."""
    command = [sys.executable, "-m", "client.doors.http"]
    for arguments, sentence in (
        (["--host", "0.0.0.0"], "--host 0.0.0.0 is reached by other machines: give --tokens FILE"),
        (["--host", "::"], "is reached by other machines"),
        (["nonsense"], "is not an endpoint"),
    ):
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and sentence in done.stderr
    with FakeServer() as server:
        door = subprocess.Popen([*command, server.endpoint, "--port", "0"], stderr=subprocess.PIPE, text=True)
        assert door.stderr
        line = door.stderr.readline()
        assert server.endpoint in line and line.startswith("gpt2d-http: http://127.0.0.1:")
        assert ask(f"{line.split()[1]}/models") == (200, {"object": "list", "data": []})
        door.terminate()
        assert door.wait(60) in (0, -15) and door.stderr.read() == ""
        door.stderr.close()


TEMPLATE = """\
{%- for message in messages %}
<{{ message.role }}>{{ message.content }}{{ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}<assistant>{% endif -%}
"""


def talk(template: str, body: dict[str, Any], *, stream: bool = False) -> tuple[list[m.Generate], tuple[int, Any]]:
    """Hold a conversation with a model of that template; return what it was asked, the status and the answer."""
    about = m.TokenizerInfo(
        context=100, before=[7], bos="<s>", eos=["<end>", "</s>"], chat_template=template, names={"eos_token": "</s>"}
    )

    def answer(request: m.AnyRequest) -> Answer:
        if isinstance(request, m.Tokenize):
            ids = [7, *(request.text or "").encode()]
            return m.Tokenized(id=None, text=request.text or "", ids=ids, offsets=[], about=about)
        if isinstance(request, m.Generate):
            return ["Good ", "day"]
        return None

    path = "/v1/chat/completions"
    with FakeServer(answer) as server, opened(server.endpoint) as url:
        if stream:
            return server.asked(m.Generate), (200, lines(url, body | {"stream": True}, path))
        answered = ask(f"{url}{path}", body)
        return server.asked(m.Generate), answered


def test_a_conversation_is_written_as_its_template_says() -> None:
    text = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
    asked, (status, told) = talk(TEMPLATE, {"messages": messages, "max_completion_tokens": 9, "temperature": 0})
    (request,) = asked
    want = "<system>Be kind.</s><user>Hi!</s><assistant>"
    assert bytes(request.prompt_ids or []).decode() == want, "without what the tokenizer puts before a text"
    assert (status, request.max_new_tokens, request.temperature, request.top_k) == (200, 9, 0, 0)
    assert told["choices"][0]["message"] == {"role": "assistant", "content": "Good day", "refusal": None}
    asked, _ = talk(TEMPLATE, {"messages": messages})
    assert asked[0].max_new_tokens == 100 - len(want), "as many as the context has room for"
    asked, (status, told) = talk(TEMPLATE, {"messages": messages, "max_tokens": 0})
    assert (asked, status) == ([], 400) and "max_tokens must be" in told["error"]["message"]
    _, (_, events) = talk(TEMPLATE, {"messages": messages}, stream=True)
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [{"role": "assistant", "content": "Good "}, {"content": "day"}, {}]


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{{ raise_exception('no system messages') }}", "no system messages"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__' of 'str' object is unsafe"),
        ("{% for i in range(10) %}", "Unexpected end of template"),
    ],
)
def test_a_template_has_no_more_than_its_sandbox(template: str, sentence: str) -> None:
    asked, (status, told) = talk(template, {"messages": [{"role": "user", "content": "Hi"}]})
    assert (asked, status) == ([], 400) and sentence in told["error"]["message"]


def test_a_template_finds_what_transformers_gives_it() -> None:
    """No tools and no documents, tokens that the tokenizer has, marks of what is trained on, and the date."""
    template = (
        "{% if tools is not none or documents is not none %}no{% endif %}{{ bos_token }}"
        "{{ strftime_now('%Y') | length }}{% for message in messages %}{% generation %}"
        "{{ message | tojson(sort_keys=true) }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    )
    asked, (status, _) = talk(template, {"messages": [{"role": "user", "content": "ü"}]})
    assert status == 200
    assert bytes(asked[0].prompt_ids or []).decode() == '4{"content": "ü", "role": "user"}</s>'


def test_a_template_that_takes_too_much_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.doors.http.template.RENDER_S", 0.5)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    _, (status, told) = talk(endless, {"messages": [{"role": "user", "content": "Hi"}]})
    assert status == 500 and "took longer than" in told["error"]["message"]


def test_tokens_of_one_character_begin_where_it_does() -> None:
    listing = Listing(1)
    for piece in ("\\xe2", "\\x80", "\\x94"):
        name = f"bytes:{piece}"
        other = m.Alternative(id=1, text="\ufffd", logprob=-1.0, name="bytes:\\xff")
        listing.new([m.TokenLogprobs(text="\ufffd", name=name, logprob=-2.0, top=[other])])
    listing.new([m.TokenLogprobs(text="", name="<|endoftext|>", logprob=-0.5, top=[])])
    told = listing.take()
    assert told["text_offset"] == [0, 0, 0, 1]
    assert told["top_logprobs"][0] == {"bytes:\\xff": -1.0, "bytes:\\xe2": -2.0}
    assert told["tokens"][3] == "<|endoftext|>"


def test_null_is_what_was_left_out() -> None:
    nulls = b'{"prompt": null, "stop": null, "logprobs": null, "max_tokens": null, "stream_options": null}'
    body = read(Completion, nulls)
    assert body == Completion() and (body.prompts, body.longest, body.count) == ([""], 16, 1)
