"""The wire: every message both ways, golden bytes, and frames that are not messages."""

from __future__ import annotations

import math
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given, settings, strategies as st

from protocol import codec, messages as m
from protocol.errors import BY_CODE, BadRequest, Internal, VersionMismatch, from_code
from protocol.ledger import Ledger, ledger
from protocol.link import Beat, FromWorker, Leave, Ready, Sized, Started, Work
from protocol.parameters import parameters

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_./", min_size=1, max_size=40)
ids = st.integers(0, 2**63 - 1)
floats = st.floats(0, 1e9)
counts = st.integers(0, 2**40)
deadlines = st.none() | st.integers(1, 86_400_000)
ledgers = st.builds(
    ledger,
    queue_ms=floats,
    tokenise_ms=floats,
    prefill_ms=floats,
    decode_ms=floats,
    prompt_tokens=counts,
    new_tokens=counts,
)
head: dict[str, Any] = {"id": ids, "deadline_ms": deadlines}
which: dict[str, Any] = {"engine": st.none() | names, "precision": st.none() | names}
prompts = st.one_of(
    st.fixed_dictionaries({"prompt": texts}),
    st.fixed_dictionaries({"prompt_ids": st.lists(st.integers(0, 2**31 - 1), max_size=20)}),
)
generations = st.builds(
    lambda prompt, **fields: m.Generate(**prompt, **fields),
    **head,
    **which,
    prompt=prompts,
    n=st.integers(1, 16),
    deterministic=st.booleans(),
    model=st.none() | names,
    stream=st.booleans(),
    max_new_tokens=st.integers(1, 65_536),
    truncate=st.sampled_from(["error", "left"]),
    ignore_eos=st.booleans(),
    strategy=st.sampled_from(["sample", "greedy", "mirostat"]),  # searches bind other fields
    temperature=st.floats(0, 100),
    top_k=st.integers(0, 1_000_000),
    top_p=st.floats(0.001, 1),
    min_p=st.floats(0, 1),
    repetition_penalty=st.floats(0.01, 100),
    stop=st.lists(st.text("ab\n", min_size=1, max_size=9), max_size=4),
    seed=st.none() | ids,
)
tokenizations = st.builds(
    lambda kind, what, **fields: kind(**what, **fields),
    kind=st.sampled_from([m.Tokenize, m.Score]),
    what=st.fixed_dictionaries({"text": texts}) | st.fixed_dictionaries({"ids": st.lists(st.integers(0, 99))}),
    **head,
    **which,
)
requests = st.one_of(
    tokenizations,
    st.builds(m.Hello, **head, client=texts),
    st.builds(m.Ping, **head),
    st.builds(m.Models, **head),
    st.builds(m.GetStats, **head),
    st.builds(m.Load, **head, **which, model=names, compile=st.booleans(), replicas=st.none() | st.integers(1, 64), stream=st.booleans()),
    st.builds(m.Measure, **head, **which, model=names, text=st.none() | st.text(min_size=1, max_size=9), stream=st.booleans()),
    st.builds(m.Unload, **head, **which, model=names),
    st.builds(m.Cancel, **head, target=ids),
    generations,
)  # fmt: skip
reply: dict[str, Any] = {"id": ids, "seq": counts}
model: dict[str, Any] = {"model": names, "engine": names, "precision": names}
fidelities = st.builds(
    m.Fidelity, quantised_share=floats, disk_bytes=counts, memory_bytes=counts, perplexity=floats, perplexity_change_pct=floats,
    top1_agreement=floats, kl_mean=floats, kl_p99=floats, greedy_tokens=floats, greedy_limit=counts, tok_s=floats, tokens=counts, threads=counts, held_out=st.booleans(),
)  # fmt: skip
healths = st.builds(
    m.WorkerHealth, **model, state=st.sampled_from(["loading", "ready", "stopping"]), moved_ms_ago=floats, running=counts, waiting=counts,
    replica=counts, node=texts,
)  # fmt: skip
replies = st.one_of(
    st.builds(m.Progress, **reply, stage=texts, done=counts, total=counts, unit=texts),
    st.builds(m.Tokens, **reply, text=texts, ids=st.lists(counts, max_size=9)),
    st.builds(m.Failure, **reply, code=st.sampled_from(sorted(BY_CODE)), message=texts),
    st.builds(m.Scored, **reply, ids=st.lists(counts, max_size=3), logprobs=st.lists(st.none() | st.floats(-9, 0)), perplexity=floats, bits_per_byte=floats, elapsed_ms=floats),
    st.builds(m.Tokenized, **reply, text=texts, ids=st.lists(counts, max_size=3), offsets=st.lists(counts, max_size=3)),
    st.builds(m.Unloaded, **reply, names=st.lists(texts, max_size=3)),
    st.builds(m.CancelSent, **reply, found=st.booleans()),
    st.builds(m.ModelList, **reply, models=st.lists(st.builds(
        m.ModelInfo, name=names, parameters=counts, context=counts, file_bytes=counts, on_disk=st.booleans(), problem=texts,
        precisions=st.lists(st.builds(m.Precision, engine=names, precision=names, memory_bytes=counts, loaded=st.booleans(), fidelity=st.none() | fidelities, replicas=st.lists(healths, max_size=2)), max_size=2),
    ), max_size=2)),
    st.builds(m.Pong, **reply, server_id=texts, uptime_ms=floats, draining=st.booleans(), workers=st.lists(healths, max_size=2)),
    st.builds(m.Stats, **reply, uptime_ms=floats, rss_bytes=counts, peers=counts, open_requests=counts,
              requests=st.dictionaries(texts, counts, max_size=3), errors=st.dictionaries(texts, counts, max_size=3),
              workers=st.lists(st.builds(m.WorkerStats, **model, rss_bytes=counts, requests=counts, prompt_tokens=counts, new_tokens=counts, busy_ms=floats, replica=counts, node=texts), max_size=2)),
    st.builds(m.Loaded, **reply, **model, digest=texts, context=counts, rows=counts, threads=counts, rss_bytes=counts, load_ms=floats, already=st.booleans(),
              quantised_share=floats, disk_bytes=counts, replicas=counts),
    st.builds(m.Measured, **reply, **model, fidelity=fidelities),
    st.builds(
        m.Generated, **reply, **model, text=texts, ids=st.lists(counts, max_size=9), prompt_truncated=counts,
        finish_reason=st.sampled_from(["eos", "length", "stop", "cancelled", "deadline"]),
        settings=st.dictionaries(texts, texts | counts | st.booleans() | st.none(), max_size=3), digest=texts, threads=counts, ledger=ledgers,
    ),
    st.just(m.ServerInfo(id=1, protocol="1.0", server_id="a", version="1", host="h", cpu="c", cores=2, memory_bytes=3,
                         engines=[m.Engine(name="onnx", precisions=["int8"])], parameters=parameters())),
)  # fmt: skip


@given(requests)
def test_every_request_survives_the_wire(request: m.AnyRequest) -> None:
    assert codec.decode_request(codec.encode(request)) == request


@given(replies)
def test_every_reply_survives_the_wire(reply: m.AnyReply) -> None:
    assert codec.decode_reply(codec.encode(reply)) == reply
    assert codec.decode_from_worker(codec.encode(reply)) == reply


def test_strategies_cover_every_type() -> None:
    """A new message type must be added to the strategies above."""
    assert len(m.AnyRequest.__args__) == 11  # type: ignore[attr-defined]
    assert len(m.AnyReply.__args__) == 14  # type: ignore[attr-defined]
    assert len(FromWorker.__args__) == 18  # type: ignore[attr-defined]


@given(generations | tokenizations, ids)
def test_the_worker_link_carries_every_generation(request: m.Generate | m.Tokenize | m.Score, key: int) -> None:
    work = Work(id=key, group=3, request=request)
    assert codec.decode_for_worker(codec.encode(work)) == work
    assert codec.decode_for_worker(codec.encode(Leave())) == Leave()
    with pytest.raises(BadRequest, match="no request type 'work'"):
        codec.decode_request(codec.encode(Work(id=1, group=1, request=m.Generate(prompt="x"))))


def test_what_workers_say_of_themselves_survives_the_link() -> None:
    ready = Ready(id=None, digest="d", quantised_share=0.5, disk_bytes=6, context=1, rows=2, threads=3, rss_bytes=4)
    beat = Beat(id=None, running=1, waiting=2, rss_bytes=3, requests=4, prompt_tokens=5, new_tokens=6, busy_ms=7.5)
    for message in (ready, beat, Started(id=None, node="n"), Sized(id=None, memory_bytes=8)):
        assert codec.decode_from_worker(codec.encode(message)) == message
        assert codec.decode_reply(codec.encode(message)) is None, "a client knows nothing of them"


def test_a_request_at_the_limit_fits_the_worker_link() -> None:
    prompt = "x" * (codec.MAX_REQUEST_BYTES - 100)
    request = codec.decode_request(codec.encode(m.Generate(id=1, prompt=prompt)))
    assert isinstance(request, m.Generate)
    assert codec.decode_for_worker(codec.encode(Work(id=2**60, group=9, request=request)))


def test_golden_request() -> None:
    frame = codec.encode(m.Generate(id=7, prompt="Hi", temperature=0.5, seed=1))
    assert frame.hex(" ") == (
        "86 a1 76 01 a4 74 79 70 65 a8 67 65 6e 65 72 61 74 65 a6 70 72 6f 6d 70 74 a2 48 69 ab 74 65 6d 70 65 72 61 74 75 72 65 "
        "cb 3f e0 00 00 00 00 00 00 a4 73 65 65 64 01 a2 69 64 07"
    )


def test_golden_replies() -> None:
    frame = codec.encode(m.Tokens(id=7, seq=0, text="!", ids=[0]))
    assert (
        frame.hex(" ")
        == "88 a1 76 01 a4 74 79 70 65 a6 74 6f 6b 65 6e 73 a4 74 65 78 74 a1 21 a3 69 64 73 91 00 a5 69 6e 64 65 78 00 a8 6c 6f 67 70 72 6f 62 73 90 a2 69 64 07 a3 73 65 71 00"
    )
    fields = msgpack.unpackb(codec.encode(m.CancelSent(id=7, found=True)))
    assert fields == {"v": 1, "type": "result", "of": "cancel", "id": 7, "seq": 0, "found": True}


def generate(**fields: Any) -> bytes:
    return bytes(msgpack.packb({"v": 1, "id": 5, "type": "generate", "prompt": "x"} | fields))


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -0.1, ">= 0"), ("temperature", 100.1, "<= 100"), ("temperature", math.nan, "temperature"),
        ("temperature", math.inf, "temperature"), ("temperature", "hot", "float"),
        ("top_k", -1, ">= 0"), ("top_k", 1.5, "int"), ("top_p", 0.0, "> 0"), ("top_p", 1.01, "<= 1"), ("top_p", math.nan, "top_p"),
        ("min_p", -0.01, ">= 0"), ("min_p", 1.01, "<= 1"), ("repetition_penalty", 0.0, ">= 0.01"), ("repetition_penalty", math.inf, "penalty"), ("logit_bias", [[1, math.nan]], "logit_bias"), ("logit_bias", [[-1, 0.0]], ">= 0"), ("n", 17, "<= 16"),
        ("max_new_tokens", 0, ">= 1"), ("max_new_tokens", 65_537, "<= 65536"), ("max_new_tokens", None, "int"),
        ("seed", -1, ">= 0"), ("seed", 2**63, "seed"), ("stop", [""], "length"), ("stop", ["x"] * 17, "length"), ("stop", "x", "array"),
        ("truncate", "right", "right"), ("strategy", "best", "best"), ("prompt", None, "exactly one"), ("prompt_ids", [1], "exactly one"),
        ("prompt", b"x", "str"), ("stream", 1, "bool"), ("deadline_ms", 0, ">= 1"), ("model", "", "length"), ("id", 2**63, "id"),
        ("type", "nonsense", "generate"), ("type", None, "generate"), ("v", "1", "version"), ("v", True, "version"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(field: str, value: object, says: str) -> None:
    with pytest.raises(BadRequest, match=says) as caught:
        codec.decode_request(generate(**{field: value}))
    assert caught.value.request_id == (None if field == "id" else 5)


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
        b"", b"\xc1", b"\x80", b"GET / HTTP/1.1\r\n\r\n", b"\x91" * 100_000, b"\x81\xa1v" * 50_000, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01", b"\xd6\xff\x00\x00\x00\x00", b"\x81\xa1v\xa1\xff", b"\x81\x90\x01", b"\x81\x80\x80", msgpack.packb([1]), msgpack.packb({"v": 1}),
        msgpack.packb({1: 2}), bytes(300_000), msgpack.packb([{}] * 60_000),
    ],
)  # fmt: skip
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
