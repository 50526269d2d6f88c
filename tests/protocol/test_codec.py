"""The wire: every message both ways, golden bytes, and frames that are not messages."""

from __future__ import annotations

import math
import re
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from protocol import codec, messages as m
from protocol.errors import BadRequest, Internal, VersionMismatch, from_code, printable
from protocol.ledger import Ledger, ledger
from protocol.parameters import parameters
from tests.strategies import replies, requests


@given(requests)
def test_every_request_survives_the_wire(request: m.AnyRequest) -> None:
    assert codec.decode_request(codec.encode(request)) == request


@given(replies)
def test_every_reply_survives_the_wire(reply: m.AnyReply) -> None:
    assert codec.decode_reply(codec.encode(reply)) == reply


def test_strategies_cover_every_type() -> None:
    """A new message type must be added to the strategies above."""
    assert len(m.AnyRequest.__args__) == 12
    assert len(m.AnyReply.__args__) == 16


def test_golden_request() -> None:
    frame = codec.encode(m.Generate(id=7, prompt="Hi", temperature=0.5, seed=1))
    assert frame.hex(" ") == (
        "86 a1 76 01 a4 74 79 70 65 a8 67 65 6e 65 72 61 74 65 a6 70 72 6f 6d 70 74 a2 48 69 "
        "ab 74 65 6d 70 65 72 61 74 75 72 65 cb 3f e0 00 00 00 00 00 00 a4 73 65 65 64 01 a2 69 64 07"
    )


def test_golden_replies() -> None:
    frame = codec.encode(m.Tokens(id=7, seq=0, text="!", ids=[0]))
    assert frame.hex(" ") == (
        "88 a1 76 01 a4 74 79 70 65 a6 74 6f 6b 65 6e 73 a4 74 65 78 74 a1 21 a3 69 64 73 91 00 "
        "a5 69 6e 64 65 78 00 a8 6c 6f 67 70 72 6f 62 73 90 a2 69 64 07 a3 73 65 71 00"
    )
    fields = msgpack.unpackb(codec.encode(m.CancelSent(id=7, found=True)))
    assert fields == {"v": 1, "type": "result", "of": "cancel", "id": 7, "seq": 0, "found": True}


def generate(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"v": 1, "id": 5, "type": "generate", "prompt": "x"} | fields))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -0.1, ">= 0"),
        ("temperature", 100.1, "<= 100"),
        ("temperature", math.nan, "temperature"),
        ("temperature", math.inf, "temperature"),
        ("temperature", "hot", "temperature must be a number, got a text"),
        ("top_k", -1, ">= 0"),
        ("top_k", 1.5, "top_k must be a whole number, got a number"),
        ("top_p", 0.0, "> 0"),
        ("top_p", 1.01, "<= 1"),
        ("top_p", math.nan, "top_p"),
        ("min_p", -0.01, ">= 0"),
        ("min_p", 1.01, "<= 1"),
        ("repetition_penalty", 0.0, ">= 0.01"),
        ("repetition_penalty", math.inf, "penalty"),
        ("logit_bias", [[1, math.nan]], "logit_bias"),
        ("logit_bias", [[-1, 0.0]], ">= 0"),
        ("n", 17, "<= 16"),
        ("max_new_tokens", 0, "^generate: max_new_tokens must be a whole number >= 1$"),
        ("max_new_tokens", 65_537, "<= 65536"),
        ("max_new_tokens", None, "must be a whole number, got nothing"),
        ("seed", -1, ">= 0"),
        ("seed", 2**63, "seed"),
        ("stop", [""], r"stop\[0\] must be a text of length >= 1"),
        ("stop", ["x"] * 17, "length"),
        ("stop", "x", "must be a list"),
        ("truncate", "right", "^generate: truncate cannot be 'right'; it can be: error, left$"),
        ("strategy", "best", "cannot be 'best'; it can be: .*greedy"),
        ("strategy", "x" * 400, r"x\.\.\.; it can be: .*greedy"),
        ("prompt", None, "exactly one"),
        ("prompt_ids", [1], "exactly one"),
        ("prompt", b"x", "prompt must be a text or nothing, got bytes"),
        ("stream", 1, "stream must be true or false, got a whole number"),
        ("deadline_ms", 0, ">= 1"),
        ("model", "", "length"),
        ("id", 2**63, "id"),
        ("type", "nonsense", "generate"),
        ("type", None, "generate"),
        ("v", "1", "^`v` must be the number 1, got a text: it is the protocol version"),
        ("v", True, "^`v` must be the number 1, got true or false"),
        ("v", msgpack.ExtType(5, b"abc"), "^`v` must be the number 1, got an extension"),
        ("type", 7, "^`type` must be a text, got a whole number; the types are: .*generate"),
        ("type", "x" * 400, "^`type` is too long; the types are: .*generate"),
    ],
)
def test_a_bad_field_is_named(field: str, value: object, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        codec.decode_request(generate(**{field: value}))
    assert caught.value.request_id == (None if field == "id" else 5)


@pytest.mark.parametrize("value", [msgpack.ExtType(5, b"abc"), [msgpack.ExtType(5, b"abc")], msgpack.Timestamp(1, 0)])
@pytest.mark.parametrize("field", ["v", "type", "id", "prompt", "truncate", "stop", "logit_bias"])
def test_no_error_tells_an_address_of_the_memory(field: str, value: object) -> None:
    with pytest.raises(BadRequest) as caught:
        codec.decode_request(generate(**{field: value}))
    assert not re.search("0x|object at|<", str(caught.value))


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (generate(prompt="?"), "generate: prompt is not UTF-8 text"),
        (generate(stop=["a", "?"]), "generate: stop is not UTF-8 text"),
        (generate(shape="?", model="?"), "generate: model is not UTF-8 text"),
        (msgpack.packb({"v": 1, "id": 5, "type": "?"}), "`type` is not UTF-8 text; the types are: .*generate"),
    ],
)
def test_a_field_that_is_not_utf8_is_named(frame: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=f"^{says}") as caught:
        codec.decode_request(frame.replace(b"?", b"\xff"))
    assert caught.value.request_id == 5


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b"", "it is empty"),
        (b"\x93\1\2\3", "it is a list"),
        (b"\xc7\x01\x05a", "it is an extension"),
        (b"\x81", "truncated"),
    ],
)
def test_a_frame_that_is_no_map_is_named(frame: bytes, says: str) -> None:
    with pytest.raises(BadRequest, match=f"^not a msgpack map: .*{says}$"):
        codec.decode_request(frame)


def test_every_first_byte_of_msgpack_has_its_type() -> None:
    names = {bytes: "bytes", int: "int", float: "float", str: "str", list: "array", dict: "object", bool: "bool"}
    values: list[Any] = [0, 127, -1, -33, 128, 2**16, 2**63, -(2**63), 1.5, True, False]
    values += ["x" * size for size in (0, 40, 300, 70_000)] + [bytes(size) for size in (0, 300, 70_000)]
    values += [[0] * size for size in (0, 20, 70_000)] + [dict.fromkeys(range(size)) for size in (0, 20, 70_000)]
    for value in values:
        assert codec.type_at(msgpack.packb(value)) == names[type(value)]
    assert codec.type_at(b"\xc0") == "null" and codec.type_at(b"\xc1") == "unused"
    for size in (1, 2, 3, 4, 8, 16, 300, 70_000):
        assert codec.type_at(msgpack.packb(msgpack.ExtType(5, bytes(size)))) == "ext"


def test_what_would_steer_a_terminal_is_written_as_an_escape() -> None:
    assert printable("a\x1b[31m\n\u202eé 日") == "a\\x1b[31m\\n\\u202eé 日"
    assert printable("\ud800") == r"\ud800", "which no message can hold"


def test_range_ends_are_good() -> None:
    codec.decode_request(
        generate(
            temperature=0,
            top_k=1_000_000,
            top_p=1,
            min_p=1,
            max_new_tokens=65_536,
            seed=2**63 - 1,
            deadline_ms=86_400_000,
        )
    )


def test_another_major_version_is_refused_with_both_named() -> None:
    with pytest.raises(VersionMismatch, match=r"version 2 .* speaks 1\.0") as caught:
        codec.decode_request(generate(v=2, type="from the future"))
    assert caught.value.request_id == 5


def test_unknown_fields_and_reply_types_are_ignored() -> None:
    assert codec.decode_request(generate(shape="round")) == m.Generate(id=5, prompt="x")
    assert codec.decode_reply(msgpack.packb({"v": 1, "type": "hint", "id": 5})) is None
    assert codec.decode_reply(msgpack.packb({"v": 1, "type": "result", "of": "future", "id": 5})) is None


def test_an_unknown_error_code_counts_as_internal() -> None:
    assert type(from_code("novel", "x")) is Internal


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x91" * 100_000,
        b"\x81\xa1v" * 50_000,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xd6\xff\x00\x00\x00\x00",
        b"\x81\xa1v\xa1\xff",
        b"\x81\x90\x01",
        b"\x81\x80\x80",
        msgpack.packb([1]),
        msgpack.packb({"v": 1}),
        msgpack.packb({1: 2}),
        bytes(300_000),
        msgpack.packb([{}] * 60_000),
    ],
)
def test_what_is_no_message_is_a_bad_request(frame: bytes) -> None:
    with pytest.raises(BadRequest):
        codec.decode_request(frame)


good = [
    codec.encode(m.Generate(id=1, prompt="Shall I compare", stop=["\n"], seed=4)),
    codec.encode(m.Load(id=2, model="demo", precision="int8")),
]


@settings(max_examples=2000)
@given(
    st.binary(max_size=200)
    | st.tuples(st.sampled_from(good), st.integers(0, 60), st.binary(max_size=4)).map(
        lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
    )
)
def test_random_and_mutated_frames_raise_nothing_else(frame: bytes) -> None:
    try:
        decoded = codec.decode_request(frame)
    except (BadRequest, VersionMismatch):
        return
    assert isinstance(decoded, m.Request)


def test_an_oversize_message_is_refused_before_it_is_sent() -> None:
    with pytest.raises(BadRequest, match="over the limit of 262144"):
        codec.encode(m.Generate(id=1, prompt="x" * 300_000))


def test_parameters_describe_every_setting() -> None:
    described = {p.name: p for p in parameters()}
    assert set(described) == set(m.SETTINGS)
    assert all(p.description for p in described.values())
    assert (described["temperature"].minimum, described["temperature"].maximum, described["temperature"].default) == (
        0,
        100,
        1.0,
    )
    first, *others = described["strategy"].choices
    assert (first, set(others)) == (
        "sample",
        {"greedy", "mirostat", "beam", "beam_sample", "diverse_beam", "contrastive"},
    )


def test_ledger_derives_once() -> None:
    made = ledger(queue_ms=1, tokenise_ms=2, prefill_ms=4, decode_ms=500, new_tokens=51)
    assert (made.first_token_ms, made.inference_ms, made.tokens_per_second) == (7, 504, 100)
    assert ledger(prefill_ms=3, new_tokens=1).tokens_per_second == 0
    assert msgspec.convert(msgspec.to_builtins(made), Ledger) == made
