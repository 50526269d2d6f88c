"""Link between gateway and worker: every message both ways, and the room that a reply needs on its way to a client."""

from __future__ import annotations

from typing import get_args

import msgspec
import pytest
from hypothesis import given

from protocol import codec, messages as m
from protocol.errors import BadRequest
from server import link
from server.link import Beat, FromWorker, Leave, Pieces, Ready, Sized, Started, Work
from tests.strategies import generations, ids, replies, tokenizations


@given(replies)
def test_every_reply_survives_the_link(reply: m.AnyReply) -> None:
    assert link.decode_from_worker(link.encode(reply)) == reply


def test_strategies_cover_every_type() -> None:
    """A new message type must be added to the tests here."""
    assert len(get_args(FromWorker)) == 21


@given(generations | tokenizations, ids)
def test_the_worker_link_carries_every_generation(request: m.Generate | m.Tokenize | m.Score, key: int) -> None:
    work = Work(id=key, group=3, request=request)
    assert link.decode_for_worker(link.encode(work)) == work
    assert link.decode_for_worker(link.encode(Leave())) == Leave()
    with pytest.raises(BadRequest, match="unknown request type 'work'"):
        codec.decode_request(link.encode(Work(id=1, group=1, request=m.Generate(prompt="x"))))


def test_what_workers_say_of_themselves_survives_the_link() -> None:
    ready = Ready(id=None, digest="d", quantised_share=0.5, disk_bytes=6, context=1, rows=2, threads=3, rss_bytes=4)
    beat = Beat(id=None, running=1, waiting=2, rss_bytes=3, requests=4, prompt_tokens=5, new_tokens=6, busy_ms=7.5)
    pieces = Pieces(id=None, pieces=[m.Tokens(id=1, text="a", ids=[5]), m.Tokens(id=2, text="", ids=[6], index=3)])
    own: tuple[FromWorker, ...] = (pieces, ready, beat, Started(id=None, node="n"), Sized(id=None, memory_bytes=8))
    for message in own:
        assert link.decode_from_worker(link.encode(message)) == message
        assert codec.decode_reply(link.encode(message)) is None, "a client knows nothing of them"


def test_a_request_at_the_limit_fits_the_worker_link() -> None:
    prompt = "x" * (codec.MAX_REQUEST_BYTES - 100)
    request = codec.decode_request(codec.encode(m.Generate(id=1, prompt=prompt)))
    assert isinstance(request, m.Generate)
    assert link.decode_for_worker(link.encode(Work(id=2**60, group=9, request=request)))


def test_the_largest_reply_of_a_worker_still_fits_under_a_clients_id() -> None:
    """The gateway puts the client's id and the reply's number in place of its own; the client takes 16 MiB."""

    def reply(characters: int) -> m.Tokens:
        return m.Tokens(id=0, seq=0, text="x" * characters, ids=[])

    around = len(link.encode(reply(1 << 20))) - (1 << 20)
    largest = reply(link.MAX_BYTES - link.HEADROOM_BYTES - around)
    assert len(link.encode(largest)) == link.MAX_BYTES - link.HEADROOM_BYTES
    codec.encode(msgspec.structs.replace(largest, id=2**63 - 1, seq=2**63 - 1))
    with pytest.raises(BadRequest, match="over the limit of"):
        link.encode(reply(len(largest.text) + 1))
