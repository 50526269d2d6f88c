"""What PROTOCOL.md says of values, errors and sockets, tried with a real daemon by a client that is not ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import msgpack
import msgspec
import pytest
import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from protocol import messages as m
from protocol.codec import MAX_REQUEST_BYTES, REQUESTS
from protocol.ledger import Ledger
from protocol.sockets import HANDSHAKE_MS, HEARTBEAT_TIMEOUT_MS, close_monitored
from scripts.daemon import Daemon
from server.config import Config
from tests.system.test_keys import keyed_daemon

DOCUMENT = (Path(__file__).resolve().parent.parent.parent / "protocol" / "PROTOCOL.md").read_text(encoding="utf-8")
GENERATE: dict[str, Any] = {"v": 1, "id": 1, "type": "generate", "prompt": "Hi", "max_new_tokens": 2}
SCORE: dict[str, Any] = {"v": 1, "id": 1, "type": "score"}

Ask: TypeAlias = Callable[[dict[str, Any]], dict[str, Any]]


def connected(context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger, socket.rcvtimeo = 0, 20_000
    socket.connect(endpoint)
    return socket


@pytest.fixture
def dealer(context: zmq.Context[zmq.Socket[bytes]], shared_daemon: Daemon) -> zmq.Socket[bytes]:
    return connected(context, zmq.DEALER, shared_daemon.endpoint)


@pytest.fixture
def ask(dealer: zmq.Socket[bytes]) -> Ask:
    def ask(fields: dict[str, Any]) -> dict[str, Any]:
        dealer.send(msgpack.packb(fields))
        reply = msgpack.unpackb(dealer.recv())
        assert isinstance(reply, dict)
        return reply

    return ask


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        (GENERATE | {"max_new_tokens": 2.0}, "bad_request"),
        (GENERATE | {"seed": 5.0}, "bad_request"),
        (GENERATE | {"seed": 2**63}, "bad_request"),
        (GENERATE | {"stream": 1}, "bad_request"),
        (GENERATE | {"prompt": b"Hi"}, "bad_request"),
        (GENERATE | {"logit_bias": {5: 1.0}}, "bad_request"),
        (GENERATE | {"seed": msgpack.ExtType(5, b"x")}, "bad_request"),
        (GENERATE | {"model": "x" * 201}, "bad_request"),
        (GENERATE | {"prompt": None, "prompt_ids": [2**31]}, "bad_request"),
        (GENERATE | {"prompt": None, "prompt_ids": [2**31 - 1]}, "bad_request"),
        (GENERATE | {"deadline_ms": 0}, "bad_request"),
        (GENERATE | {"model": "nobody-knows-it"}, "not_loaded"),
        (GENERATE | {"model": "demo", "precision": "fp32"}, "not_loaded"),
        (GENERATE | {"type": "unload", "model": "nobody-knows-it"}, "not_loaded"),
        (GENERATE | {"type": "load", "model": "nobody-knows-it"}, "unknown_model"),
        (SCORE | {"ids": [5], "bos": "never"}, "bad_request"),
        (SCORE | {"ids": []}, "bad_request"),
        (SCORE | {"text": "Shall I compare", "stride": 1025}, "bad_request"),
        (GENERATE | {"temperature": 1}, None),
        (GENERATE | {"seed": 2**63 - 1}, None),
        (GENERATE | {"unknown": msgpack.ExtType(5, b"x")}, None),
        (SCORE | {"ids": [5]}, None),
        (SCORE | {"ids": [5, 6]}, None),
        (SCORE | {"ids": [5], "texts": [{"ids": [5]}]}, "bad_request"),
        (SCORE | {"texts": []}, "bad_request"),
        (SCORE | {"text": "Shall I compare", "stride": 1024}, None),
    ],
)
def test_values_are_taken_or_refused_as_it_says(ask: Ask, fields: dict[str, Any], code: str | None) -> None:
    assert ask(fields).get("code") == code


def test_the_error_names_the_field_that_has_a_token_too_many(ask: Ask) -> None:
    """Two fields of a request have tokens."""
    of_tokens = {field: value for field, value in GENERATE.items() if field != "prompt"}
    for field, fields in (
        ("prompt_ids", of_tokens | {"prompt_ids": [1, 99_999]}),
        ("logit_bias", GENERATE | {"logit_bias": [[99_999, 1.0]]}),
    ):
        assert ask(fields)["message"].startswith(f"{field}: a token of this model must be 0 to ")


def test_nil_is_taken_where_it_is_the_default(ask: Ask) -> None:
    for field in msgspec.structs.fields(m.Generate):
        if field.name != "prompt":
            reply = ask(GENERATE | {field.name: None})
            assert (reply["type"] == "result") == (field.default is None), (field.name, reply)


def test_a_seed_is_what_was_drawn_and_a_javascript_number_may_not_hold_it(ask: Ask) -> None:
    for seed in (2**53 + 1, 2**63 - 1):
        assert ask(GENERATE | {"seed": seed})["settings"]["seed"] == seed
    assert "useBigInt64" in DOCUMENT


def test_a_req_socket_gets_no_stream(
    context: zmq.Context[zmq.Socket[bytes]], shared_daemon: Daemon, dealer: zmq.Socket[bytes]
) -> None:
    """Its next request would take the second piece for its reply."""
    req = connected(context, zmq.REQ, shared_daemon.endpoint)
    for fields in (GENERATE, {"v": 1, "id": 1, "type": "load", "model": "demo"}):
        req.send(msgpack.packb(fields | {"stream": True}))
        reply = msgpack.unpackb(req.recv())
        assert reply["code"] == "bad_request" and "use a DEALER" in reply["message"]
        req.send(msgpack.packb(fields | {"stream": False}))
        assert msgpack.unpackb(req.recv())["type"] == "result"
    dealer.send_multipart([b"", msgpack.packb(GENERATE | {"stream": True})])
    empty, frame = dealer.recv_multipart()
    assert empty == b"" and msgpack.unpackb(frame)["type"] == "tokens"


def test_the_whole_stream_is_what_a_daemon_sends(dealer: zmq.Socket[bytes]) -> None:
    """All that another machine and another moment give, too."""
    code = DOCUMENT.partition("```python stream\n")[2].partition("```")[0]
    listing = DOCUMENT.partition("```json stream\n")[2].partition("```")[0]
    request, *shown = (json.loads(each) for each in re.split(r"\n+(?={)", listing))
    printed: list[str] = []
    exec(code, {"socket": dealer, "msgpack": msgpack, "json": json, "request": request, "print": printed.append})
    replies = [json.loads(line) for line in printed]
    assert len(shown) == 4 and list(map(list, replies)) == list(map(list, shown)), "the same fields in the same order"
    ledgers = [result.pop("ledger") for result in (replies[-1], shown[-1])]
    assert list(ledgers[0]) == list(ledgers[1])
    assert [[ledger[f"{kind}_tokens"] for kind in ("prompt", "new")] for ledger in ledgers] == [[4, 3]] * 2
    for name in ("threads", "threads_used", "instruction_set"):
        assert type(replies[-1].pop(name)) is type(shown[-1].pop(name))
    assert replies == shown


def events(monitor: zmq.Socket[bytes], wanted: int) -> tuple[set[int], int]:
    """Return the events up to the one that is wanted, and its value."""
    seen: set[int] = set()
    while wanted not in seen:
        assert monitor.poll(20_000)
        event = recv_monitor_message(monitor)
        seen.add(int(event["event"]))
    return seen, int(event["value"])


def test_what_is_too_large_ends_the_connection_and_a_full_one_does_not(dealer: zmq.Socket[bytes]) -> None:
    monitor = dealer.get_monitor_socket()
    empty = len(msgpack.packb(GENERATE | {"prompt": "x" * 70_000})) - 70_000
    for size in (MAX_REQUEST_BYTES, MAX_REQUEST_BYTES + 1):
        assert f"{MAX_REQUEST_BYTES:,}" in DOCUMENT
        frame = msgpack.packb(GENERATE | {"prompt": "x" * (size - empty)})
        assert len(frame) == size
        dealer.send(frame)
        if size == MAX_REQUEST_BYTES:
            assert msgpack.unpackb(dealer.recv())["code"] == "too_long"
    events(monitor, zmq.EVENT_DISCONNECTED)
    events(monitor, zmq.EVENT_HANDSHAKE_SUCCEEDED)
    dealer.send(msgpack.packb({"v": 1, "type": "ping"}))
    assert msgpack.unpackb(dealer.recv())["of"] == "ping", "it connects again by itself"
    close_monitored(dealer, monitor)


def test_an_envelope_is_given_back_up_to_its_limit(dealer: zmq.Socket[bytes]) -> None:
    ping = msgpack.packb({"v": 1, "type": "ping"})
    dealer.send_multipart([b"x"] * 8 + [ping])
    dealer.send_multipart([b"x" * 1025, ping])
    for envelope in ([b"a"] * 7, [b"b" * 1024]):
        dealer.send_multipart([*envelope, ping])
        assert dealer.recv_multipart()[:-1] == envelope, "those before it were not answered"


def test_the_limits_of_those_that_do_not_read_or_answer_are_the_servers() -> None:
    config, document = Config(), " ".join(DOCUMENT.split())
    unsent = f"{config.max_unsent} replies or {config.max_unsent_bytes >> 20} MiB are kept"
    assert unsent in document and f"for {config.max_unsent_seconds:g} s" in document
    assert f"heartbeats within {HEARTBEAT_TIMEOUT_MS // 1000} s" in document
    assert f"its handshake within {HANDSHAKE_MS // 1000} s" in document


def test_every_request_and_setting_is_in_it() -> None:
    for name in (*REQUESTS, *m.SETTINGS):
        assert f"`{name}`" in DOCUMENT, name


def told(base: type[msgspec.Struct]) -> Iterator[type[msgspec.Struct]]:
    for kind in base.__subclasses__():
        yield kind
        yield from told(kind)


def test_the_types_of_replies_are_theirs() -> None:
    table = DOCUMENT.partition("## Types in replies")[2].partition("## Errors")[0]
    lines = re.findall(r"^\| (.*?) \| (.*) \|$", table, re.MULTILINE)
    rows = {kind: set(re.findall(r"`(\w+)`", names)) for kind, names in lines}
    structs: list[type[msgspec.Struct]] = [*told(m.Told), Ledger]
    for struct in structs:
        for field in msgspec.structs.fields(struct):
            kind = str(getattr(field.type, "__name__", field.type)).removesuffix(" | None")
            if kind in {"int", "float", "bool"}:
                endings = {f"_{end}" for end in ("bytes", "ms", "ms_ago") if field.name.endswith(f"_{end}")}
                assert rows[kind] & {field.name, *endings}, f"{struct.__name__}.{field.name} is {kind}"


def test_a_monitor_tells_the_failures_of_a_handshake_apart(
    context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path, cache: Path
) -> None:
    keyed = keyed_daemon(tmp_path, cache)
    public, secret = zmq.curve_keypair()
    own = z85.decode(keyed.server.public)  # 32 raw bytes
    failures = [
        (own, zmq.EVENT_HANDSHAKE_FAILED_AUTH, 400),
        (b"", zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH),
        (public, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, None),
    ]
    with keyed.daemon:
        for server, event, value in failures:
            socket = context.socket(zmq.DEALER)
            socket.linger = 0
            if server:
                socket.curve_serverkey = server
                socket.curve_publickey, socket.curve_secretkey = public, secret
            monitor = socket.get_monitor_socket()
            socket.connect(keyed.daemon.endpoint)
            seen, said = events(monitor, event)
            assert zmq.EVENT_HANDSHAKE_SUCCEEDED not in seen
            assert value in (None, said)
            close_monitored(socket, monitor)
