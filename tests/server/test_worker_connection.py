"""Connection of the worker, with the gateway's socket at the other end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import zmq

from protocol import messages as m
from protocol.keys import CurveKeys
from server import link
from server.link import HEADROOM_BYTES, MAX_BYTES, Pieces, Work
from server.worker.connection import GatewayConnection
from tests.conftest import free_port
from tests.server.test_worker import SPEC, Loop


@contextmanager
def connected() -> Iterator[tuple[zmq.Socket[bytes], GatewayConnection]]:
    """Yield the gateway's socket, and a worker's connection to it."""
    keys = CurveKeys.new()
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with zmq.Context() as context:
        socket, monitor = link.gateway_socket(context, endpoint, keys)
        yield socket, GatewayConnection(replace(SPEC, endpoint=endpoint, server_key=keys.public, identity="w"))
        for each in (socket, monitor):
            each.close()


def test_an_answer_too_large_for_its_way_is_refused_by_the_worker() -> None:
    """An answer may fit the link, but not the way to a client under the client's own id."""
    with connected() as (socket, connection):
        loop = Loop()
        loop.worker.take(Work(id=1, group=0, request=m.Tokenize(text="a")))
        (small,) = loop.link.sent
        assert isinstance(small, m.Tokenized)
        around = len(link.encode(replace_text(small, "x" * (1 << 20)))) - (1 << 20)
        largest = MAX_BYTES - HEADROOM_BYTES - around
        for size in (largest, largest + 1):
            connection.send(replace_text(small, "x" * size))
        fits, refused = (link.decode_from_worker(socket.recv_multipart()[-1]) for _ in range(2))
        assert isinstance(fits, m.Tokenized) and len(fits.text) == largest
        assert isinstance(refused, m.Failure) and (refused.id, refused.code) == (1, "bad_request")
        assert refused.message.startswith("the answer: the message is ")


def test_pieces_too_large_for_one_message_go_one_by_one() -> None:
    with connected() as (socket, connection):
        sizes = (MAX_BYTES // 2, MAX_BYTES // 2, MAX_BYTES + 1)
        pieces = [m.Tokens(id=number, text="x" * size, ids=[]) for number, size in enumerate(sizes)]
        connection.send(Pieces(id=None, pieces=pieces))
        *sent, refused = (link.decode_from_worker(socket.recv_multipart()[-1]) for _ in pieces)
        assert sent == pieces[:2]
        assert isinstance(refused, m.Failure) and (refused.id, refused.code) == (2, "bad_request")


def replace_text(reply: m.Tokenized, text: str) -> m.Tokenized:
    return m.Tokenized(id=reply.id, text=text, ids=reply.ids, offsets=reply.offsets)
