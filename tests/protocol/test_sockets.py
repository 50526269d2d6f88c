"""Real sockets: the largest messages of the codec arrive, encrypted or not, and larger ones do not."""

from __future__ import annotations

import pytest
import zmq

from protocol import sockets
from protocol.keys import CurveKeys

LIMIT = 100_000


@pytest.mark.parametrize("encrypted", [False, True])
def test_the_largest_message_arrives_in_both_directions(
    context: zmq.Context[zmq.Socket[bytes]], *, encrypted: bool
) -> None:
    router, dealer = sockets.router(context, LIMIT), sockets.dealer(context, LIMIT)
    if encrypted:
        keys = CurveKeys.new()
        sockets.serve_curve(router, keys)
        sockets.use_curve(dealer, keys.public, CurveKeys.new())
    router.bind("tcp://127.0.0.1:0")
    dealer.connect(sockets.endpoint_of(router))
    assert dealer.poll(10_000, zmq.POLLOUT)
    dealer.send(bytes(LIMIT))
    assert router.poll(10_000), "the connection was cut"
    peer, frame = router.recv_multipart()
    assert len(frame) == LIMIT
    router.send_multipart([peer, bytes(LIMIT)])
    assert dealer.poll(10_000), "the connection was cut"
    assert len(dealer.recv()) == LIMIT
    monitor = router.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    dealer.send(bytes(LIMIT + 1))
    assert monitor.poll(10_000), "one byte more is too much"
